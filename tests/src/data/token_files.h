// Token files for tests, in a folder of the test's own.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/data/corpus.h"
#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot {

class TokenFiles : public test::InFolder {
  protected:
    template <typename T>
    static std::string bytes_of(const std::vector<T>& values) {
        return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
    }
    template <typename Id>
    static std::string ids_of(const std::vector<int64_t>& ids) {
        return bytes_of(std::vector<Id>(ids.begin(), ids.end()));
    }
    // Returns a shard: a header that says what it is told to (a negative count: the right one), then `ids` in
    // `id_bytes` each.
    static std::string llmc(const std::vector<int64_t>& ids, int32_t magic = 20240520, int32_t version = 1,
                            int64_t count = -1, size_t id_bytes = 2) {
        std::vector<int32_t> header(256, 0);
        header[0] = magic;
        header[1] = version;
        header[2] = static_cast<int32_t>(count < 0 ? static_cast<int64_t>(ids.size()) : count);
        return bytes_of(header) + (id_bytes == 2 ? ids_of<uint16_t>(ids) : ids_of<uint32_t>(ids));
    }
    static std::string wide_llmc(const std::vector<int64_t>& ids) { return llmc(ids, 20240801, 7, -1, 4); }
    // Returns the .idx of sequences of these lengths; `documents` is as Megatron has it: first sequences, then their
    // number.
    static std::string megatron(uint8_t code, int64_t token_bytes, const std::vector<int32_t>& lengths,
                                const std::vector<int64_t>& documents) {
        std::vector<int64_t> pointers;
        int64_t at = 0;
        for (const int32_t length : lengths) {
            pointers.push_back(at * token_bytes);
            at += length;
        }
        const std::vector<uint64_t> counts = {lengths.size(), documents.size()};
        return std::string("MMIDIDX\0\0", 9) + bytes_of(std::vector<uint64_t>{1}) + static_cast<char>(code) +
               bytes_of(counts) + bytes_of(lengths) + bytes_of(pointers) + bytes_of(documents);
    }

    static DataEntry entry(const std::string& path, DataFormat format = DataFormat::automatic,
                           RawType dtype = RawType::automatic, const std::string& mask = "") {
        DataEntry entry;
        entry.path = path;
        entry.format = format;
        entry.dtype = dtype;
        entry.mask = mask;
        return entry;
    }

    static std::vector<int64_t> starts_of(const Corpus& corpus) {
        std::vector<int64_t> starts;
        for (size_t s = 0; s < corpus.segments().size(); ++s) corpus.append_documents(static_cast<int64_t>(s), &starts);
        return starts;
    }
    static std::vector<int32_t> tokens_of(const Corpus& corpus, int64_t begin, int64_t end) {
        std::vector<int32_t> tokens(static_cast<size_t>(end - begin));
        const Corpus::Place place = corpus.place(begin);
        EXPECT_LE(end - begin, place.rest);
        place.shard->copy(place.token, end - begin, tokens.data());
        return tokens;
    }
    using Text = std::vector<std::vector<int32_t>>;
    static Text documents_of(const Corpus& corpus) {
        std::vector<int64_t> starts = starts_of(corpus);
        starts.push_back(corpus.num_tokens());
        Text documents;
        for (size_t d = 0; d + 1 < starts.size(); ++d) documents.push_back(tokens_of(corpus, starts[d], starts[d + 1]));
        return documents;
    }
};

// Returns the one line with which something is refused.
template <typename Function>
std::string refusal_of(Function&& function) {
    const std::string error = test::user_error_of(function, "not refused");
    EXPECT_EQ(error.find('\n'), std::string::npos);
    return error;
}

#define EXPECT_REFUSED(message, ...)       \
    for (const char* part : {__VA_ARGS__}) \
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" is missing in: " << message

}  // namespace ingot
