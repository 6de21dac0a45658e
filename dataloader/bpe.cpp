#include "dataloader/bpe.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "dataloader/pretokenize.h"
#include "dataloader/utf8.h"
#include "kernels/error.h"

namespace {

constexpr const char* end_of_text = "<|endoftext|>";
constexpr size_t large_piece = 1 << 20;  // bytes; merging takes up to 32 times as much memory
constexpr size_t longest_piece = 16 << 20;

// <|endoftext|>, or another token for no text, as <pad>. No merge makes it.
bool is_special(const std::string& token) {
    return token.size() > 2 && token.front() == '<' && token.back() == '>';
}

// Where a piece of more than longest_piece bytes is cut: there, at the start of a character.
size_t forced_cut(std::string_view piece) {
    size_t at = longest_piece;
    while (at > longest_piece - 3 && (static_cast<unsigned char>(piece[at]) & 0xC0) == 0x80) at--;
    return at;
}

// The merges by their two tokens: a hash table with open addressing.
class Merges {
  public:
    struct Merge {
        uint64_t pair = empty;
        uint32_t rank = 0;
        int result = 0;
    };

    void reserve(size_t count) {
        shift_ = 64;
        for (size_t size = 1; size < 2 * count + 2; size *= 2) shift_--;
        table_.assign(size_t(1) << (64 - shift_), {});
    }
    void set(int left, int right, uint32_t rank, int result) {
        *place(pair_of(left, right)) = {pair_of(left, right), rank, result};
    }
    // Null when the two do not merge.
    const Merge* find(int left, int right) const {
        const Merge* merge = const_cast<Merges*>(this)->place(pair_of(left, right));
        return merge->pair == empty ? nullptr : merge;
    }

  private:
    static constexpr uint64_t empty = ~uint64_t(0);
    static uint64_t pair_of(int left, int right) {
        return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    }
    Merge* place(uint64_t pair) {
        size_t at = pair * 0x9E3779B97F4A7C15 >> shift_;
        while (table_[at].pair != pair && table_[at].pair != empty) at = (at + 1) & (table_.size() - 1);
        return &table_[at];
    }
    std::vector<Merge> table_;
    int shift_ = 63;
};

// Tokens of pieces met before: every hash value has room for one piece, the last.
class PieceCache {
  public:
    struct alignas(64) Slot {
        static constexpr size_t longest = 30, most = 8;
        uint8_t size = 0, count = 0;  // size 0: free
        char piece[longest];
        int tokens[most];
        bool holds(std::string_view other) const {
            return size == other.size() && memcmp(piece, other.data(), size) == 0;
        }
    };
    PieceCache() : slots_(size_t(1) << bits) {}
    // The slot in which the piece is or would be; null when it is too long for one.
    Slot* slot(std::string_view piece) {
        return piece.size() > Slot::longest ? nullptr : &slots_[hash(piece) >> (64 - bits)];
    }

  private:
    static constexpr int bits = 16;
    // The first and last bytes of a range overlap where its length is no power of two: nothing beyond it is read.
    static uint64_t hash(std::string_view piece) {
        constexpr uint64_t factor = 0x9E3779B97F4A7C15;
        const char* p = piece.data();
        const size_t n = piece.size();
        auto load = [&](size_t at, auto word) {
            memcpy(&word, p + at, sizeof word);
            return static_cast<uint64_t>(word);
        };
        uint64_t h = n;
        auto mix = [&](uint64_t word) {
            h = (h ^ word) * factor;
            h ^= h >> 32;
        };
        if (n >= 8) {
            for (size_t at = 0; at + 8 < n; at += 8) mix(load(at, uint64_t()));
            mix(load(n - 8, uint64_t()));
        } else if (n >= 4) {
            mix(load(0, uint32_t()) << 32 | load(n - 4, uint32_t()));
        } else if (n > 0) {
            mix(load(0, uint8_t()) << 16 | load(n / 2, uint8_t()) << 8 | load(n - 1, uint8_t()));
        }
        return h * factor;
    }
    std::vector<Slot> slots_;
};

// What one thread needs to encode.
struct Scratch {
    explicit Scratch(const Pretokenizer& pretokenizer) : matcher(pretokenizer) {}

    struct Symbol {  // a token of the piece being merged, where its first byte is; a list
        int token, previous, next;
    };
    struct Candidate {  // two neighbours that merge
        uint32_t rank;
        int left;
        bool operator<(const Candidate& other) const {  // the heap has the greatest on top
            return rank != other.rank ? rank > other.rank : left > other.left;
        }
    };
    Pretokenizer::Matcher matcher;
    PieceCache cache;
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
};

class Gpt2Tokenizer final : public Tokenizer {
  public:
    explicit Gpt2Tokenizer(BpeVocabulary vocabulary);

    std::string kind() const override { return "gpt2"; }
    int vocab_size() const override { return static_cast<int>(bytes_.size()); }
    int eot() const override { return eot_; }
    void encode(std::string_view text, std::vector<int>& tokens) const override;
    void encode_part(std::string_view part, std::vector<int>& tokens) const override;
    size_t cut(std::string_view text) const override;
    void decode(int token, std::string& text) const override {
        if (token >= 0 && token < vocab_size()) text += bytes_[static_cast<size_t>(token)];
    }
    void write(nlohmann::ordered_json& file) const override { bpe_write(vocabulary_, file); }
    std::vector<NamedText> huggingface_files() const override;

  private:
    // A Scratch of its own for every thread that encodes at this moment.
    class Loan {
      public:
        explicit Loan(const Gpt2Tokenizer& owner);
        ~Loan();
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;
        Scratch* operator->() const { return scratch_.get(); }
        Scratch& operator*() const { return *scratch_; }

      private:
        const Gpt2Tokenizer& owner_;
        std::unique_ptr<Scratch> scratch_;
    };

    void encode_valid(std::string_view text, std::string_view shown, Scratch& scratch, std::vector<int>& tokens) const;
    void encode_broken(std::string_view text, size_t valid, std::vector<int>& tokens) const;
    void encode_piece(std::string_view piece, Scratch& scratch, std::vector<int>& tokens) const;
    void merge(std::string_view piece, Scratch& scratch, std::vector<int>& tokens) const;

    BpeVocabulary vocabulary_;
    std::vector<std::string> bytes_;  // by token
    int byte_token_[256];
    int eot_ = -1;
    Merges merges_;
    Pretokenizer pretokenizer_;
    mutable std::mutex idle_mutex_, large_mutex_;
    mutable std::vector<std::unique_ptr<Scratch>> idle_;
};

Gpt2Tokenizer::Gpt2Tokenizer(BpeVocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
    const char *vocab_source = vocabulary_.vocab_source.c_str(), *merges_source = vocabulary_.merges_source.c_str();
    std::unordered_map<std::string_view, int> ids;
    std::fill(std::begin(byte_token_), std::end(byte_token_), -1);
    for (const std::string& token : vocabulary_.tokens) {
        const int id = static_cast<int>(bytes_.size());
        bytes_.push_back(bpe_bytes(token));
        if (token.empty()) continue;
        ids[token] = id;
        if (bytes_.back().size() == 1) byte_token_[static_cast<unsigned char>(bytes_.back()[0])] = id;
        if (token == end_of_text) eot_ = id;
    }
    if (eot_ < 0)
        throw user_error("%s: its vocabulary has no %s, so it is not GPT-2's; name a GPT-2 tokenizer's folder",
                         vocab_source, end_of_text);
    for (int byte = 0; byte < 256; byte++) {
        if (byte_token_[byte] < 0)
            throw user_error(
                "%s: its vocabulary has no token for the byte 0x%02X, so it is not GPT-2's; name a GPT-2 tokenizer's "
                "folder",
                vocab_source, byte);
    }
    merges_.reserve(vocabulary_.merges.size());
    std::vector<bool> merged(vocabulary_.tokens.size());  // by token: a merge makes it
    uint32_t rank = 0;
    for (const auto& [left, right] : vocabulary_.merges) {
        const auto l = ids.find(left), r = ids.find(right), both = ids.find(left + right);
        if (l == ids.end() || r == ids.end() || both == ids.end())
            throw user_error(
                "%s: merge %u, '%s %s', is of tokens that the vocabulary lacks; the two files belong to different "
                "tokenizers",
                merges_source, rank + 1, printable(left).c_str(), printable(right).c_str());
        merges_.set(l->second, r->second, rank++, both->second);
        merged[static_cast<size_t>(both->second)] = true;
    }
    // A list cut at a line's end would encode, into tokens that no model was trained on.
    size_t lacking = 0, first_lacking = 0;
    for (size_t i = vocabulary_.tokens.size(); i-- > 0;) {
        const std::string& token = vocabulary_.tokens[i];
        if (merged[i] || bytes_[i].size() <= 1 || is_special(token)) continue;
        lacking++;
        first_lacking = i;
    }
    if (lacking > 0)
        throw user_error(
            "%s: has %zu merges where the vocabulary needs %zu (none makes '%s'), so it was cut short or is another "
            "tokenizer's; fetch it again",
            merges_source, vocabulary_.merges.size(), vocabulary_.merges.size() + lacking,
            printable(vocabulary_.tokens[first_lacking]).c_str());
}

Gpt2Tokenizer::Loan::Loan(const Gpt2Tokenizer& owner) : owner_(owner) {
    {
        std::lock_guard lock(owner_.idle_mutex_);
        if (!owner_.idle_.empty()) {
            scratch_ = std::move(owner_.idle_.back());
            owner_.idle_.pop_back();
        }
    }
    if (!scratch_) scratch_ = std::make_unique<Scratch>(owner_.pretokenizer_);
}

Gpt2Tokenizer::Loan::~Loan() {
    std::lock_guard lock(owner_.idle_mutex_);
    owner_.idle_.push_back(std::move(scratch_));
}

void Gpt2Tokenizer::encode(std::string_view text, std::vector<int>& tokens) const {
    const size_t valid = utf8_valid(text);
    if (valid < text.size() && text.size() <= whole_text) return encode_broken(text, valid, tokens);
    encode_part(text, tokens);
}

void Gpt2Tokenizer::encode_part(std::string_view part, std::vector<int>& tokens) const {
    Loan scratch(*this);
    if (utf8_valid(part) == part.size()) return encode_valid(part, part, *scratch, tokens);
    encode_valid(part, hide_invalid(part), *scratch, tokens);
}

// shown: the text as the pattern is to see it, of the same length.
void Gpt2Tokenizer::encode_valid(std::string_view text, std::string_view shown, Scratch& scratch,
                                 std::vector<int>& tokens) const {
    for (size_t at = 0; at < text.size();) {
        const size_t end = scratch.matcher.piece_end(shown, at);
        encode_piece(text.substr(at, end - at), scratch, tokens);
        at = end;
    }
}

// As tiktoken: `valid` bytes of UTF-8, then one that is not.
void Gpt2Tokenizer::encode_broken(std::string_view text, size_t valid, std::vector<int>& tokens) const {
    Loan scratch(*this);
    const std::string_view good = text.substr(0, valid);
    size_t last = tokens.size(), last_begin = 0;  // tokens and bytes before the last piece
    const size_t first = last;
    for (size_t at = 0; at < good.size();) {
        last = tokens.size();
        last_begin = at;
        at = scratch->matcher.piece_end(good, at);
        encode_piece(good.substr(last_begin, at - last_begin), *scratch, tokens);
    }
    auto blank = [&](int token) {
        return bytes_[static_cast<size_t>(token)].find_first_not_of(" \n\t") == std::string::npos;
    };
    // Blank tokens before a last piece that begins with one belong to it.
    if (last < tokens.size() && blank(tokens[last])) {
        while (last > first && blank(tokens[last - 1])) {
            last--;
            last_begin -= bytes_[static_cast<size_t>(tokens[last])].size();
        }
    }
    tokens.resize(last);
    merge(text.substr(last_begin), *scratch, tokens);
}

void Gpt2Tokenizer::encode_piece(std::string_view piece, Scratch& scratch, std::vector<int>& tokens) const {
    PieceCache::Slot* slot = scratch.cache.slot(piece);
    if (slot != nullptr && slot->holds(piece)) {
        tokens.insert(tokens.end(), slot->tokens, slot->tokens + slot->count);
        return;
    }
    const size_t before = tokens.size();
    for (; piece.size() > longest_piece; piece.remove_prefix(forced_cut(piece)))
        merge(piece.substr(0, forced_cut(piece)), scratch, tokens);
    merge(piece, scratch, tokens);
    const size_t count = tokens.size() - before;
    if (slot == nullptr || count > PieceCache::Slot::most) return;
    slot->size = static_cast<uint8_t>(piece.size());
    slot->count = static_cast<uint8_t>(count);
    memcpy(slot->piece, piece.data(), piece.size());
    memcpy(slot->tokens, tokens.data() + before, count * sizeof(int));
}

void Gpt2Tokenizer::merge(std::string_view piece, Scratch& scratch, std::vector<int>& tokens) const {
    // The memory of large pieces is taken by one thread at a time, and given back.
    std::unique_lock<std::mutex> lock;
    if (piece.size() > large_piece) lock = std::unique_lock(large_mutex_);
    auto& symbols = scratch.symbols;
    auto& heap = scratch.heap;
    const int n = static_cast<int>(piece.size());
    symbols.resize(piece.size());
    heap.clear();
    auto at = [&](int i) -> Scratch::Symbol& { return symbols[static_cast<size_t>(i)]; };
    for (int i = 0; i < n; i++)
        at(i) = {byte_token_[static_cast<unsigned char>(piece[static_cast<size_t>(i)])], i - 1, i + 1};
    // The merge of the symbol at `left` with its right neighbour; null when there is none.
    auto merge_at = [&](int left) -> const Merges::Merge* {
        const int right = at(left).next;
        return right == n ? nullptr : merges_.find(at(left).token, at(right).token);
    };
    for (int i = 0; i < n; i++) {
        if (const Merges::Merge* found = merge_at(i)) heap.push_back({found->rank, i});
    }
    std::make_heap(heap.begin(), heap.end());
    auto add = [&](int left) {
        const Merges::Merge* found = left < 0 ? nullptr : merge_at(left);
        if (found == nullptr) return;
        heap.push_back({found->rank, left});
        std::push_heap(heap.begin(), heap.end());
    };
    while (!heap.empty()) {
        const Scratch::Candidate best = heap.front();
        std::pop_heap(heap.begin(), heap.end());
        heap.pop_back();
        // What stands there may have been merged since; then the candidate is out of date.
        if (at(best.left).token < 0) continue;
        const Merges::Merge* found = merge_at(best.left);
        if (found == nullptr || found->rank != best.rank) continue;
        Scratch::Symbol& left = at(best.left);
        Scratch::Symbol& right = at(left.next);
        left.token = found->result;
        right.token = -1;
        left.next = right.next;
        if (left.next < n) at(left.next).previous = best.left;
        add(left.previous);
        add(best.left);
    }
    for (int i = 0; i < n; i = at(i).next) tokens.push_back(at(i).token);
    if (piece.size() > large_piece) {
        symbols = {};
        heap = {};
    }
}

size_t Gpt2Tokenizer::cut(std::string_view text) const {
    // Before white space that follows anything else. No alternative of the pattern matches both: ` ?` stands at the
    // start of one, and the rest of each is of one kind. So a piece ends here, whatever comes later; and that of the
    // pieces before would come out the same if the text ended here, because only a match of white space looks at what
    // follows it, and such a match lies, with what it looks at, before the character that is not white space.
    for (size_t at = text.size(); at-- > 1;) {
        const unsigned char c = static_cast<unsigned char>(text[at]);
        if ((c == ' ' || (c >= '\t' && c <= '\r')) && !ends_in_space(text.substr(0, at))) return at;
    }
    // No such place, so by the pattern, which is at the start of a piece to begin with. It looks at two characters
    // behind the end of a match at most (`'` is a piece unless s, or ll, or ... follows; of white space the last is
    // left over if something else comes next), 8 bytes. So what ends 8 bytes before the end of what is here would end
    // there with more text too. With none as well, unless it is white space: an end of text leaves no space over.
    const std::string shown = hide_invalid(text);
    Loan scratch(*this);
    size_t cut = 0;
    for (size_t at = 0; at + 8 < shown.size();) {
        at = scratch->matcher.piece_end(shown, at);
        if (at + 8 <= shown.size() && !ends_in_space(text.substr(0, at))) cut = at;
    }
    return cut == 0 && text.size() > longest_piece ? forced_cut(text) : cut;
}

std::vector<NamedText> Gpt2Tokenizer::huggingface_files() const {
    const std::string config =
        std::string("{\n  \"tokenizer_class\": \"GPT2Tokenizer\",\n  \"add_prefix_space\": false,\n") +
        "  \"bos_token\": \"" + end_of_text + "\",\n  \"eos_token\": \"" + end_of_text + "\",\n  \"unk_token\": \"" +
        end_of_text + "\"\n}\n";
    return {{"vocab.json", bpe_vocab_json(vocabulary_)},
            {"merges.txt", bpe_merges_txt(vocabulary_)},
            {"tokenizer_config.json", config}};
}

}  // namespace

TokenizerPtr gpt2_tokenizer(BpeVocabulary vocabulary) {
    return std::make_unique<Gpt2Tokenizer>(std::move(vocabulary));
}
