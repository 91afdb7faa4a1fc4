#include "src/base/mapped_file.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "kernels/core/check.h"

namespace ingot {

// The handler walks a list of these. Entries are never freed, because a handler may be at one at any time.
struct Mapping {
    std::string path;
    uintptr_t begin = 0, end = 0;
    dev_t device = 0;
    ino_t inode = 0;
    Mapping* next = nullptr;
    std::atomic<bool> is_mapped = true, is_broken = false;
};

namespace {

std::atomic<Mapping*> first_mapping = nullptr;
struct sigaction previous_action {};
uintptr_t page_bytes = 4096;

// Calls only mmap() and sigaction(), which are bare system calls on Linux and so safe in a handler.
void on_bus_error(int number, siginfo_t* info, void*) {
    const int error = errno;
    const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr);
    const bool is_of_kernel = info->si_code > 0;  // kill(2) sends the others
    for (Mapping* mapping = first_mapping; is_of_kernel && mapping != nullptr; mapping = mapping->next) {
        if (!mapping->is_mapped || at < mapping->begin || at >= mapping->end) continue;
        const uintptr_t page = at & ~(page_bytes - 1);
        mapping->is_broken = true;  // before anybody can read a zero
        const void* const zeros =
            mmap(reinterpret_cast<void*>(page), mapping->end - page, PROT_READ,  // NOLINT(performance-no-int-to-ptr)
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        errno = error;
        if (zeros != MAP_FAILED) return;
        break;
    }
    sigaction(SIGBUS, &previous_action, nullptr);
    if (!is_of_kernel) raise(number);  // the kernel's own signal comes again by itself
    errno = error;
}

void install_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
        struct sigaction action {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &previous_action);
    });
}

// Returns whether the path still names this file and the file is shorter than it was.
bool is_shorter(const Mapping& mapping) {
    struct stat info {};
    return stat(mapping.path.c_str(), &info) == 0 && info.st_dev == mapping.device && info.st_ino == mapping.inode &&
           static_cast<uintptr_t>(info.st_size) < mapping.end - mapping.begin;
}

}  // namespace

void MappedFile::require_intact(size_t end) const {
    if (mapping == nullptr) return;
    // If the file ends before its last page, this load raises the signal.
    static_cast<void>(*static_cast<const volatile uint8_t*>(data.get() + size - 1));
    const bool reaches_last_page = size % page_bytes != 0 && end > size / page_bytes * page_bytes;
    if (!mapping->is_broken && !(reaches_last_page && is_shorter(*mapping))) return;
    throw UserError(join(mapping->path,
                         is_shorter(*mapping) ? " became shorter while it was read"
                                              : " could not be read: it was cut short, or its disk failed",
                         ": restore the file"));
}

MappedFile map_file(const std::string& path) {
    return map_file(open_regular_file(path), path);
}

MappedFile map_file(const Descriptor& descriptor, const std::string& path) {
    install_handler();
    struct stat info {};
    REQUIRE(fstat(descriptor.get(), &info) == 0, "cannot look at ", path, ": ", std::strerror(errno));
    MappedFile file;
    file.size = static_cast<size_t>(info.st_size);
    if (file.size == 0) return file;
    void* const memory = mmap(nullptr, file.size, PROT_READ, MAP_SHARED, descriptor.get(), 0);
    REQUIRE(memory != MAP_FAILED, "cannot map ", path, ": ", std::strerror(errno));
    Mapping* const mapping = new Mapping;
    mapping->path = path;
    mapping->begin = reinterpret_cast<uintptr_t>(memory);
    mapping->end = mapping->begin + file.size;
    mapping->device = info.st_dev;
    mapping->inode = info.st_ino;
    mapping->next = first_mapping;
    while (!first_mapping.compare_exchange_weak(mapping->next, mapping)) {}
    file.mapping = mapping;
    file.data = {static_cast<const uint8_t*>(memory), [mapping](const uint8_t* data) {
                     // This comes first, because another mapping may get the addresses as soon as they are free.
                     mapping->is_mapped = false;
                     munmap(const_cast<uint8_t*>(data), mapping->end - mapping->begin);
                 }};
    return file;
}

}  // namespace ingot
