// Caches the last few values. The first thread that asks for a value makes it, and others wait for it.
#pragma once

#include <algorithm>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ingot {

// get() is thread-safe. A value lives as long as somebody holds it.
template <typename Key, typename Value>
class KeyedCache {
  public:
    explicit KeyedCache(size_t capacity) : capacity_(capacity) {}

    // Returns the value of `key`, and makes it with `make()` if it is not cached. An exception of make() is thrown in
    // all threads that wait, and the next call tries again. A cached value costs no allocation, since this is called
    // for every row.
    template <typename Make>
    std::shared_ptr<const Value> get(const Key& key, const Make& make) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (const auto found = find(key); found != entries_.end()) {
            std::rotate(entries_.begin(), found, found + 1);
            const std::shared_future<std::shared_ptr<const Value>> future = entries_.front().second;
            lock.unlock();
            return future.get();
        }
        std::promise<std::shared_ptr<const Value>> promise;
        if (entries_.size() == capacity_) entries_.pop_back();
        entries_.insert(entries_.begin(), {key, promise.get_future().share()});
        lock.unlock();
        try {
            auto value = std::make_shared<const Value>(make());
            promise.set_value(value);
            return value;
        } catch (...) {
            lock.lock();
            if (const auto found = find(key); found != entries_.end()) entries_.erase(found);
            lock.unlock();
            promise.set_exception(std::current_exception());
            throw;
        }
    }

  private:
    using Entry = std::pair<Key, std::shared_future<std::shared_ptr<const Value>>>;
    typename std::vector<Entry>::iterator find(const Key& key) {
        return std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.first == key; });
    }

    const size_t capacity_;
    std::mutex mutex_;
    std::vector<Entry> entries_;  // the latest used first
};

}  // namespace ingot
