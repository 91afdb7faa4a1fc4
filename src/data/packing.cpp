#include "src/data/packing.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace ingot {

namespace {

// A set of numbers in [0, size), as a bitmap with a second level that has a bit for every 64 bits of the first.
class NumberSet {
  public:
    explicit NumberSet(int64_t size) {
        do {
            size = (size + 63) / 64;
            levels_.emplace_back(static_cast<size_t>(size), 0);
        } while (size > 1);
    }
    void insert(int64_t number) {
        for (std::vector<uint64_t>& level : levels_) {
            level[static_cast<size_t>(number / 64)] |= uint64_t{1} << (number % 64);
            number /= 64;
        }
    }
    void erase(int64_t number) {
        for (std::vector<uint64_t>& level : levels_) {
            uint64_t& word = level[static_cast<size_t>(number / 64)];
            word &= ~(uint64_t{1} << (number % 64));
            if (word != 0) return;
            number /= 64;
        }
    }
    // Returns the smallest number in the set that is not below `number`, or -1.
    int64_t next(int64_t number) const {
        for (size_t level = 0; level < levels_.size(); ++level) {
            const size_t at = static_cast<size_t>(number / 64);
            if (at >= levels_[level].size()) return -1;
            const uint64_t word = levels_[level][at] >> (number % 64);
            if (word == 0) {
                number = number / 64 + 1;
                continue;
            }
            number += std::countr_zero(word);
            while (level-- > 0) number = number * 64 + std::countr_zero(levels_[level][static_cast<size_t>(number)]);
            return number;
        }
        return -1;
    }

  private:
    std::vector<std::vector<uint64_t>> levels_;
};

constexpr int64_t kNone = -1;

}  // namespace

PackedRows pack_best_fit(std::span<const int64_t> positions, int64_t context_length) {
    const int64_t T = context_length, num_documents = static_cast<int64_t>(positions.size()) - 1;
    std::vector<Piece> pieces;
    std::vector<int64_t> rows_of_pieces, by_length(static_cast<size_t>(T) + 1, 0);
    for (int64_t d = 0; d < num_documents; ++d) {
        const int64_t length = positions[static_cast<size_t>(d) + 1] - positions[static_cast<size_t>(d)];
        for (int64_t offset = 0; offset < length; offset += T) {
            pieces.push_back({d, offset, std::min(T, length - offset)});
            by_length[static_cast<size_t>(pieces.back().length)] += 1;
        }
    }
    // A counting sort orders the pieces by length, the longest first; pieces of equal length keep their order.
    int64_t place = 0;
    for (int64_t length = T; length >= 0; --length) {
        const int64_t count = by_length[static_cast<size_t>(length)];
        by_length[static_cast<size_t>(length)] = place;
        place += count;
    }
    std::vector<int64_t> sorted(pieces.size());
    for (size_t p = 0; p < pieces.size(); ++p)
        sorted[static_cast<size_t>(by_length[static_cast<size_t>(pieces[p].length)]++)] = static_cast<int64_t>(p);

    // The rows that still have room are kept in a stack for each amount of room.
    NumberSet rooms(T + 1);
    std::vector<int64_t> top(static_cast<size_t>(T) + 1, kNone), below;
    rows_of_pieces.resize(pieces.size());
    int64_t num_rows = 0;
    for (const int64_t p : sorted) {
        const int64_t length = pieces[static_cast<size_t>(p)].length, fit = rooms.next(length);
        int64_t row = num_rows, room = T;
        if (fit >= 0) {
            room = fit;
            row = top[static_cast<size_t>(room)];
            top[static_cast<size_t>(room)] = below[static_cast<size_t>(row)];
            if (top[static_cast<size_t>(room)] == kNone) rooms.erase(room);
        } else {
            num_rows += 1;
            below.push_back(kNone);
        }
        rows_of_pieces[static_cast<size_t>(p)] = row;
        const int64_t left = room - length;
        if (left == 0) continue;
        below[static_cast<size_t>(row)] = top[static_cast<size_t>(left)];
        top[static_cast<size_t>(left)] = row;
        rooms.insert(left);
    }

    // Rows are numbered by their first piece, and each row's pieces are stored side by side.
    std::vector<int64_t> numbers(static_cast<size_t>(num_rows), kNone);
    PackedRows packed;
    packed.row_begins.assign(static_cast<size_t>(num_rows) + 1, 0);
    int64_t next_number = 0;
    for (int64_t& row : rows_of_pieces) {
        int64_t& number = numbers[static_cast<size_t>(row)];
        if (number == kNone) number = next_number++;
        row = number;
        packed.row_begins[static_cast<size_t>(row) + 1] += 1;
    }
    std::inclusive_scan(packed.row_begins.begin(), packed.row_begins.end(), packed.row_begins.begin());
    packed.pieces.resize(pieces.size());
    std::vector<int64_t> next = packed.row_begins;
    for (size_t p = 0; p < pieces.size(); ++p)
        packed.pieces[static_cast<size_t>(next[static_cast<size_t>(rows_of_pieces[p])]++)] = pieces[p];
    return packed;
}

}  // namespace ingot
