// The few values that were asked for last, each made once, by whoever asks first; others wait for it.
#pragma once

#include <algorithm>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ingot {

// Any thread may call get(). Values live for as long as somebody holds them.
template <typename Key, typename Value>
class KeyedCache {
  public:
    explicit KeyedCache(size_t capacity) : capacity_(capacity) {}

    // The value of `key`, made by `make()` if it is not here. What make() throws goes to all who wait, and the next
    // call tries again.
    // Allocates nothing where it is here: this is done for every row.
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
