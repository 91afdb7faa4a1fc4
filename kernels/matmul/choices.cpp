#include "kernels/matmul/choices.h"

#include "kernels/core/rng.h"

namespace ingot {

namespace {

uint32_t alignment_of(const void* data) {
    uint32_t alignment = 256;
    while (reinterpret_cast<uintptr_t>(data) % alignment != 0) alignment /= 2;
    return alignment;
}

std::string hexadecimal(const uint8_t* bytes, size_t count) {
    constexpr const char* kDigits = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < count; ++i) {
        text += kDigits[bytes[i] >> 4];
        text += kDigits[bytes[i] & 15];
    }
    return text;
}

// Returns -1 for other characters, capitals among them, so that an algorithm has only one text.
int digit_value(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    return -1;
}

}  // namespace

GemmKey key_of(const Gemm& p) {
    const Tensor& addend = p.addend ? p.addend : p.out;
    return {.M = p.out.shape[0],
            .N = p.out.shape[1],
            .K = p.a.shape[p.a_transposed ? 0 : 1],
            .out_stride = p.out.stride[0],
            .a_stride = p.a.stride[0],
            .b_stride = p.b.stride[0],
            .addend_stride = addend.stride[0],
            .out_alignment = alignment_of(p.out.data),
            .a_alignment = alignment_of(p.a.data),
            .b_alignment = alignment_of(p.b.data),
            .addend_alignment = alignment_of(addend.data),
            .dtype = p.a.dtype,
            .b_dtype = p.b.dtype,
            .out_dtype = p.out.dtype,
            .a_transposed = p.a_transposed,
            .b_transposed = p.b_transposed,
            .adds = static_cast<bool>(p.addend),
            .in_place = addend.data == p.out.data,
            .has_bias = static_cast<bool>(p.bias),
            .fast_accumulation = p.fast_accumulation};
}

std::string text_of(const GemmKey& key) {
    const auto four = [&](auto a, auto b, auto out, auto addend) {
        return key.adds ? join(a, " ", b, " ", out, " ", addend) : join(a, " ", b, " ", out);
    };
    return join(name_of(key.dtype), key.b_dtype != key.dtype ? join("*", name_of(key.b_dtype)) : "", " ", key.M, "x",
                key.N, "x", key.K, " ", key.a_transposed ? "t" : "n", key.b_transposed ? "t" : "n", " to ",
                name_of(key.out_dtype),
                !key.adds      ? ""
                : key.in_place ? " added in place"
                               : " with an addend",
                key.has_bias ? " with bias" : "", key.fast_accumulation ? " fast" : "", ", strides ",
                four(key.a_stride, key.b_stride, key.out_stride, key.addend_stride), ", align ",
                four(key.a_alignment, key.b_alignment, key.out_alignment, key.addend_alignment));
}

std::string seal_algorithm(const std::string& machine, const std::string& gemm, const MatmulAlgorithm& algorithm) {
    const std::string digits = hexadecimal(algorithm.data(), algorithm.size());
    const uint64_t checksum = stream_of(join(machine, "\n", gemm, "\n", digits).c_str());
    uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(checksum >> (56 - 8 * i));
    return digits + "-" + hexadecimal(bytes, 8);
}

bool unseal_algorithm(const std::string& machine, const std::string& gemm, const std::string& text,
                      MatmulAlgorithm* algorithm) {
    MatmulAlgorithm bytes;
    if (text.size() < 2 * bytes.size()) return false;
    for (size_t i = 0; i < bytes.size(); ++i) {
        const int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        bytes[i] = static_cast<uint8_t>(high << 4 | low);
    }
    if (text != seal_algorithm(machine, gemm, bytes)) return false;
    *algorithm = bytes;
    return true;
}

}  // namespace ingot
