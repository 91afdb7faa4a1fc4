// Headers and indexes: what is read, every refusal, and damage of every kind.
//
// Seen to catch: `array_bytes / 12` without the division (CountsThatWouldOverflow); the check that sequences follow one
// another left out (RefusesGapsInTheBin).
#include "src/data/formats.h"

#include "tests/src/data/token_files.h"

namespace ingot {
namespace {

std::span<const std::byte> view(const std::string& bytes) {
    return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
}

class FormatsTest : public TokenFiles {
  protected:
    static std::string refusal(const std::string& index, int64_t bin_bytes) {
        return refusal_of([&] { MegatronIndex(view(index), bin_bytes, "x.idx"); });
    }
};

TEST_F(FormatsTest, MegatronDtypes) {
    const struct {
        uint8_t code;
        TokenType type;
    } known[] = {{1, TokenType::u8}, {4, TokenType::i32}, {5, TokenType::i64}, {8, TokenType::u16}};
    for (const auto& [code, type] : known) {
        const std::string bytes = megatron(code, ingot::bytes_of(type), {3, 0, 2, 4}, {0, 1, 3, 3, 4});
        const MegatronIndex index(view(bytes), 9 * ingot::bytes_of(type), "x.idx");
        EXPECT_EQ(index.layout().type, type);
        EXPECT_EQ(index.layout().count, 9);
        EXPECT_EQ(index.num_documents(), 4);
        std::vector<int64_t> starts;
        for (int64_t d = 0; d <= 4; ++d) starts.push_back(index.first_token(d));
        EXPECT_EQ(starts, (std::vector<int64_t>{0, 3, 5, 5, 9}));
        EXPECT_EQ(index.first_document_from(4), 2);
        EXPECT_EQ(index.first_document_from(9), 4);
        EXPECT_NO_THROW(index.check_documents(0, 4));
    }
    for (const uint8_t code : {0, 2, 3, 6, 7, 9, 255}) {
        const std::string number = std::to_string(code);
        const std::string error = refusal(megatron(code, 4, {3}, {0, 1}), 12);
        EXPECT_REFUSED(error, "x.idx", "dtype code", number.c_str(), "uint8", "int32", "int64", "uint16");
    }
}

TEST_F(FormatsTest, RefusesMegatronHeaders) {
    const std::string good = megatron(8, 2, {3, 2}, {0, 1, 2});
    EXPECT_EQ(refusal(good, 10), "not refused");
    EXPECT_REFUSED(refusal("", 10), "x.idx", "MMIDIDX", "copy");
    EXPECT_REFUSED(refusal(good.substr(0, 33), 10), "x.idx", "MMIDIDX");
    std::string bad = good;
    bad[9] = 2;
    EXPECT_REFUSED(refusal(bad, 10), "version 2", "version 1");
    EXPECT_REFUSED(refusal(good.substr(0, good.size() - 1), 10), "cut short");
    EXPECT_REFUSED(refusal(good + "x", 10), "longer than it says");
    EXPECT_REFUSED(refusal(good + "xx", 10), "multimodal");
    EXPECT_REFUSED(refusal(good, 11), "11 bytes", "uint16");
    EXPECT_REFUSED(refusal(good, 12), "does not belong to its .bin", "6 tokens");
    EXPECT_REFUSED(refusal(good, 8), "does not belong to its .bin");
    EXPECT_REFUSED(refusal(megatron(8, 2, {}, {0}), 0), "0 sequences");
    EXPECT_REFUSED(refusal(megatron(8, 2, {3}, {0}), 6), "1 document entries");
    EXPECT_REFUSED(refusal(megatron(8, 2, {3, 2}, {0, 1}), 10), "document index");
    EXPECT_REFUSED(refusal(megatron(8, 2, {3, 2}, {1, 2}), 10), "document index");
}

TEST_F(FormatsTest, CountsThatWouldOverflow) {
    std::string index = megatron(8, 2, {3, 2}, {0, 1, 2});
    for (const uint64_t count : {~uint64_t{0}, uint64_t{1} << 62, uint64_t{1} << 32, uint64_t{1000}})
        for (const size_t at : {18, 26}) {
            std::string bad = index;
            std::memcpy(bad.data() + at, &count, 8);
            EXPECT_REFUSED(refusal(bad, 10), "cut short");
        }
}

TEST_F(FormatsTest, RefusesGapsInTheBin) {
    const std::string good = megatron(4, 4, {3, 2, 4}, {0, 1, 2, 3});
    const size_t second_length = 34 + 4, second_pointer = 34 + 12 + 8, second_document = 34 + 36 + 8;
    const struct {
        size_t at;
        int64_t value;
        size_t bytes;
        const char* says;
    } cases[] = {{second_length, 1, 4, "sequence 1"},
                 {second_length, -2, 4, "sequence 1"},
                 {second_pointer, 13, 8, "sequence 1 begins at byte 13"},
                 {second_pointer, -4, 8, "sequence 1 begins at byte -4"},
                 {second_pointer, int64_t{1} << 60, 8, "sequence 1"},
                 {second_pointer, 16, 8, "sequence 0"},
                 {second_document, 7, 8, "document 1 begins with sequence 7"},
                 {second_document, -1, 8, "document 1 begins with sequence -1"},
                 {second_document + 8, 0, 8, "before document 1 ends"}};
    for (const auto& [at, value, bytes, says] : cases) {
        std::string bad = good;
        std::memcpy(bad.data() + at, &value, bytes);
        const std::string error = refusal_of([&] { MegatronIndex(view(bad), 36, "x.idx").check_documents(0, 3); });
        EXPECT_REFUSED(error, "x.idx", says);
    }
}

// Every bit of a small index flipped: refused, or read with all documents inside the file.
TEST_F(FormatsTest, DamagedIndexesNeverLeadOutside) {
    const std::string good = megatron(8, 2, {3, 0, 2, 4}, {0, 1, 3, 4});
    for (size_t bit = 0; bit < good.size() * 8; ++bit) {
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
        try {
            const MegatronIndex index(view(bad), 18, "x.idx");
            index.check_documents(0, index.num_documents());
            for (int64_t d = 0; d <= index.num_documents(); ++d) {
                EXPECT_GE(index.first_token(d), 0);
                EXPECT_LE(index.first_token(d), index.layout().count);
                index.first_document_from(d);
            }
        } catch (const UserError&) {}
    }
}

TEST_F(FormatsTest, RawIds) {
    EXPECT_EQ(parse_raw(RawType::uint16, {}, 20, "x").count, 10);
    EXPECT_EQ(parse_raw(RawType::uint32, {}, 20, "x").count, 5);
    EXPECT_REFUSED(refusal_of([] { parse_raw(RawType::uint16, {}, 21, "x.bin"); }), "x.bin", "21 bytes", "dtype");
    EXPECT_REFUSED(refusal_of([] { parse_raw(RawType::uint16, {}, 0, "x.bin"); }), "x.bin", "empty");
    const std::string shard = llmc({1, 2, 3});
    EXPECT_REFUSED(refusal_of([&] {
                       parse_raw(RawType::uint16, view(shard).first(1024), static_cast<int64_t>(shard.size()), "x");
                   }),
                   "header of its own", "remove");
    // Ids that happen to look like a magic number are ids.
    EXPECT_EQ(parse_raw(RawType::uint16, view(shard).first(1024), 4096, "x").count, 2048);
}

}  // namespace
}  // namespace ingot
