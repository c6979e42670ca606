// Where blocks lie and who shares them: against a model of a cache in plain words, and whole steps through the C ABI.
#include "cache/cache.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>

#include "core/testing.h"
#include "device/device.h"
#include "step/step.h"

namespace adamas {
namespace {

#define EXPECT_OK(call) EXPECT_EQ(call, ADAMAS_OK) << adamas_last_error()
#define ASSERT_OK(call) ASSERT_EQ(call, ADAMAS_OK) << adamas_last_error()

constexpr int head_dim = 64;

using Settings = std::vector<std::pair<const char*, const char*>>;

adamas_config config_of(const Settings& settings = {}) {
  adamas_config config;
  EXPECT_OK(adamas_config_init(&config));
  EXPECT_OK(adamas_config_set(&config, "min_context", "0"));
  for (auto [name, value] : settings) EXPECT_OK(adamas_config_set(&config, name, value));
  return config;
}

adamas_cache_params params_of(int32_t kv_heads, int64_t sequences, int64_t capacity, int64_t blocks = 0) {
  adamas_cache_params params{};
  params.struct_size = sizeof params;
  params.kv_heads = kv_heads;
  params.head_dim = head_dim;
  params.sequences = sequences;
  params.capacity = capacity;
  params.blocks = blocks;
  return params;
}

// What a cache is, in plain words: every sequence has rows, each with a content of its own; blocks that were shared and did
// not change since are one.
struct Model {
  static constexpr int64_t sequences = 6, blocks = 5, capacity = blocks * block_tokens - 10, pool = 17;
  struct Block {
    uint64_t live = 0;
    int64_t id = -1;  // the same in sequences that share it
  };
  Block block[sequences][blocks];
  std::vector<float> content[sequences];  // of each row
  int64_t length[sequences] = {};
  int64_t next_id = 0;

  Model() {
    for (auto& rows : content) rows.assign(capacity, 0);
  }
  int64_t used() const {
    std::set<int64_t> ids;
    for (const auto& sequence : block)
      for (const Block& b : sequence)
        if (b.id >= 0) ids.insert(b.id);
    return int64_t(ids.size());
  }
  bool shared(int64_t s, int64_t b) const {
    int64_t users = 0;
    for (const auto& sequence : block)
      for (const Block& other : sequence) users += other.id == block[s][b].id;
    return block[s][b].id >= 0 && users > 1;
  }
  int64_t last(int64_t s) const {
    int64_t last = -1;
    for (int64_t b = 0; b < blocks; b++)
      if (block[s][b].live != 0) last = b;
    return last;
  }
  // Rows that have codes: all, but of the last block whole groups of 16, if there is one.
  uint64_t encoded(int64_t s, int64_t b) const {
    const uint64_t live = block[s][b].live;
    if (b != last(s)) return live;
    int end = 64;
    while (end > 0 && (live >> (end - 1) & 1) == 0) end--;
    const uint64_t whole = live & bits_between(0, end / 16 * 16);
    return whole != 0 ? whole : live;
  }
};

// A hundred thousand times a sequence grows, is written over, cut, cleared, shared, in a pool that is too small for all:
// what has codes, and of which rows, is what the model says, and codes are those of a block that was encoded by itself.
TEST(Cache, IsWhatItsModelSaysAfterAnyOperations) {
  using M = Model;
  M model;
  std::mt19937 random(5);
  const auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  const adamas_config config = config_of();
  Cache cache(config, params_of(1, M::sequences, M::capacity, M::pool));
  std::vector<float> rows(M::sequences * M::capacity * head_dim);
  const adamas_rows k{rows.data(), ADAMAS_F32, M::capacity * head_dim * 4, 0, head_dim * 4, nullptr, 0};
  const auto write = [&](int64_t s, int64_t t, float content) {
    model.content[s][t] = content;
    for (int d = 0; d < head_dim; d++)
      rows[(s * M::capacity + t) * head_dim + d] = std::sin(content * float(d + 1)) + float(d % 3);
  };
  std::vector<float> scratch(block_tokens * head_dim);
  int64_t refused = 0, shares = 0, copies = 0, compared = 0;

  const auto expect_model = [&](int64_t operation) {
    ASSERT_EQ(cache.blocks.used(), model.used()) << "operation " << operation;
    for (int64_t s = 0; s < M::sequences; s++) {
      ASSERT_EQ(cache.length(s), model.length[s]) << "operation " << operation << ", sequence " << s;
      for (int64_t b = 0; b < M::blocks; b++) {
        ASSERT_EQ(cache.blocks.live(s, b), model.block[s][b].live)
            << "operation " << operation << ", block " << s << " " << b;
        ASSERT_EQ(cache.blocks.wanted(s, b), model.encoded(s, b))
            << "operation " << operation << ", block " << s << " " << b;
      }
    }
    // One sequence is used: what is marked is encoded, and all of it is right.
    const int64_t s = below(M::sequences);
    encode_marked(cache, k, &k, s, 0, M::blocks, scratch.data());
    for (int64_t b = 0; b < M::blocks; b++) {
      if (model.block[s][b].live == 0) continue;
      compared++;
      ASSERT_EQ(cache.coded(s, b), model.encoded(s, b)) << "operation " << operation;
      std::vector<std::byte> memory(BlockLayout{head_dim}.head_bytes(1) + 64, std::byte{7});
      float scale, sigma;
      auto* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
      const Codes alone(aligned, 1, &scale, &sigma, BlockLayout{head_dim});
      encode_block(rows_of(k, s, 0, M::capacity).from(b * block_tokens), head_dim, model.encoded(s, b), b == 0,
                   Coding::by_block, true, alone.block(0), scratch.data());
      const Block made = cache.codes(s, 0).block(b), expected = alone.block(0);
      ASSERT_EQ(std::memcmp(made.high, expected.high, made.layout.code_bytes()), 0) << "operation " << operation;
      ASSERT_EQ(std::memcmp(made.centre, expected.centre, made.layout.centre_bytes()), 0) << "operation " << operation;
      ASSERT_EQ(std::memcmp(made.hash, expected.hash, block_tokens * sizeof(uint32_t)), 0) << "operation " << operation;
      ASSERT_EQ(*made.centre_scale, *expected.centre_scale) << "operation " << operation;
      ASSERT_EQ(*made.sigma, *expected.sigma) << "operation " << operation;
    }
  };
  // A sequence's block gets an id of its own; -1 and no rows when there is no place for that.
  const auto own = [&](int64_t s, int64_t b) {
    M::Block& block = model.block[s][b];
    if (block.id >= 0 && !model.shared(s, b)) return;
    copies += block.id >= 0;
    if (model.used() == M::pool)
      block = {};
    else
      block.id = model.next_id++;
  };
  const auto cut = [&](int64_t s, int64_t length) {
    for (int64_t b = 0; b < M::blocks; b++) {
      M::Block& block = model.block[s][b];
      const uint64_t kept = block.live & bits_between(0, length - b * block_tokens);
      if (kept == block.live) continue;
      if (kept == 0) {
        block = {};
        continue;
      }
      own(s, b);
      block.live &= kept;
    }
    model.length[s] = std::min(model.length[s], length);
  };
  // A block that becomes the last one, or no longer is, may have codes of other rows: then it is no longer shared.
  const auto own_what_differs = [&](int64_t s, const uint64_t* agreed) {
    for (int64_t b = M::blocks - 1; b >= 0; b--)
      if (model.block[s][b].live != 0 && model.encoded(s, b) != agreed[b]) own(s, b);
  };
  const auto with_last = [&](int64_t s, auto&& change) {
    uint64_t before[M::blocks];
    for (int64_t b = 0; b < M::blocks; b++) before[b] = model.encoded(s, b);
    change();
    own_what_differs(s, before);
  };

  for (int64_t operation = 0; operation < 100'000; operation++) {
    const int64_t s = below(M::sequences);
    const int64_t kind = below(100);
    if (kind < 55) {  // rows are written, most of them at the end
      const int64_t first = kind < 45 ? model.length[s] : below(M::capacity);
      const int64_t count = std::min(M::capacity - first, kind < 30 ? 1 + below(5) : 1 + below(120));
      if (count <= 0) continue;
      if (!cache.blocks.fits(s, first, first + count, true)) {
        refused++;
        ASSERT_GT(model.used() + M::blocks, M::pool) << "operation " << operation;
        continue;
      }
      for (int64_t t = first; t < first + count; t++) write(s, t, float(random() % 1000) / 100.0f);
      cache.blocks.append(s, first, count);
      with_last(s, [&] {
        for (int64_t b = first / block_tokens; b < blocks_of(first + count); b++) {
          own(s, b);
          model.block[s][b].live |= bits_between(first - b * block_tokens, first + count - b * block_tokens);
        }
      });
      model.length[s] = std::max(model.length[s], first + count);
    } else if (kind < 75) {
      const int64_t length = below(M::capacity + 1);
      cache.blocks.truncate(s, length);
      with_last(s, [&] { cut(s, length); });
    } else if (kind < 95) {
      const int64_t to = below(M::sequences), length = below(model.length[s] + 1);
      shares += s != to;
      cache.share(s, to, length);
      if (s != to) {
        for (int64_t t = 0; t < M::capacity; t++) write(to, t, model.content[s][t]);
        std::copy(std::begin(model.block[s]), std::end(model.block[s]), std::begin(model.block[to]));
        for (int64_t b = blocks_of(length); b < M::blocks; b++) model.block[to][b] = {};
        model.length[to] = model.length[s];
      }
      uint64_t agreed[M::blocks];  // what the two have codes of
      for (int64_t b = 0; b < M::blocks; b++) agreed[b] = model.encoded(s, b);
      cut(to, length);
      own_what_differs(to, agreed);
    } else if (kind < 98) {
      cache.blocks.invalidate();
    } else {
      cache.blocks.truncate(s, 0);
      cut(s, 0);
    }
    expect_model(operation);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(refused, 100) << "the pool is to be too small now and then";
  EXPECT_GT(shares, 10'000);
  EXPECT_GT(copies, 1'000);
  EXPECT_GT(compared, 100'000);
}

// K and V of some sequences, a cache, a plan and queries. Rows are f16, with a topic for every 40 tokens.
struct Rig {
  static constexpr int q_heads = 4, kv_heads = 2;
  static constexpr int64_t row = head_dim * 2;
  Rig(int64_t sequences, int64_t tokens, const adamas_config& config)
      : sequences(sequences), tokens(tokens), config(config) {
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    for (auto* rows : {&k, &v}) rows->resize(size_t(sequences * kv_heads * tokens * row));
    std::vector<float> x(head_dim);
    for (int64_t i = 0; i < sequences * kv_heads * tokens; i++)
      for (auto* rows : {&k, &v}) {
        for (int d = 0; d < head_dim; d++) x[d] = normal(random) + (d == i / 40 % head_dim ? 4.0f : 0.0f);
        testing::store_row(rows->data() + i * row, DType::f16, x.data(), head_dim);
      }
    q = testing::normal_vector(random, int(sequences) * q_heads * head_dim, 2);
    adamas_plan_params params{};
    params.struct_size = sizeof params;
    params.q_heads = q_heads;
    params.kv_heads = kv_heads;
    params.head_dim = head_dim;
    params.max_tokens = tokens;
    params.max_threads = 2;
    EXPECT_OK(adamas_plan_create(&config, &params, &plan));
  }
  Rig(const Rig&) = delete;
  ~Rig() {
    adamas_plan_destroy(plan);
    for (adamas_cache* cache : caches) adamas_cache_destroy(cache);
  }
  adamas_cache* make_cache(adamas_cache_params params) {
    adamas_cache* cache = nullptr;
    EXPECT_OK(adamas_cache_create(&config, &params, &cache));
    caches.push_back(cache);
    return cache;
  }
  adamas_cache_params params(int64_t blocks = 0) const { return params_of(kv_heads, sequences, tokens, blocks); }
  adamas_rows rows(std::vector<std::byte>& of) const {
    return {of.data(), ADAMAS_F16, kv_heads * tokens * row, tokens * row, row, nullptr, 0};
  }
  std::byte* at(std::vector<std::byte>& of, int64_t s, int64_t g, int64_t t) const {
    return of.data() + ((s * kv_heads + g) * tokens + t) * row;
  }
  // The first `length` rows of a sequence become another one's.
  void copy_rows(int64_t from, int64_t to, int64_t length) {
    for (auto* rows : {&k, &v})
      for (int64_t g = 0; g < kv_heads; g++) std::memcpy(at(*rows, to, g, 0), at(*rows, from, g, 0), size_t(length * row));
  }

  // What a step gives, all of it.
  struct Given {
    std::vector<float> out, lse, mass;
    std::vector<int64_t> selected;
    adamas_step_stats stats;
    bool operator==(const Given& other) const {
      const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {  // a mass may be NaN
        return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
      };
      return same(out, other.out) && same(lse, other.lse) && same(mass, other.mass) && selected == other.selected &&
             stats.rows_sparse == other.stats.rows_sparse && stats.rows_stale == other.stats.rows_stale &&
             stats.tokens_selected == other.stats.tokens_selected;
    }
  };
  Given step(adamas_cache* cache, const std::vector<int64_t>& of, const std::vector<int64_t>& lengths,
             const adamas_rows& keys, const adamas_rows& values) {
    Given given{std::vector<float>(of.size() * q_heads * head_dim),
                std::vector<float>(of.size() * q_heads),
                std::vector<float>(of.size() * q_heads),
                std::vector<int64_t>(tokens),
                {}};
    given.stats.struct_size = sizeof given.stats;
    adamas_step_params p{};
    p.struct_size = sizeof p;
    p.threads = 2;
    p.batch = int64_t(of.size());
    p.rows = 1;
    p.sequences = of.data();
    p.lengths = lengths.data();
    p.q = q.data();
    p.q_stride_head = p.out_stride_head = head_dim * 4;
    p.q_stride_batch = p.out_stride_batch = q_heads * head_dim * 4;
    p.k = keys;
    p.v = values;
    p.out = given.out.data();
    p.lse = given.lse.data();
    p.mass = given.mass.data();
    p.stats = &given.stats;
    p.verify = 1;
    p.verify_rows = tokens;
    EXPECT_OK(adamas_step(plan, cache, &p));
    int64_t count = 0;
    EXPECT_OK(adamas_selection(plan, 0, given.selected.data(), tokens, &count));
    given.selected.resize(size_t(count));
    return given;
  }
  Given step(adamas_cache* cache, const std::vector<int64_t>& of, const std::vector<int64_t>& lengths) {
    return step(cache, of, lengths, rows(k), rows(v));
  }
  void append(adamas_cache* cache, int64_t s, int64_t first, int64_t count) {
    const adamas_rows keys = rows(k), values = rows(v);
    EXPECT_OK(adamas_append(cache, s, first, count, &keys, &values));
  }
  static std::pair<int64_t, int64_t> places(const adamas_cache* cache) {
    int64_t used = 0, all = 0;
    EXPECT_OK(adamas_cache_places(cache, &used, &all));
    return {used, all};
  }

  const int64_t sequences, tokens;
  adamas_config config;
  adamas_plan* plan = nullptr;
  std::vector<adamas_cache*> caches;
  std::vector<std::byte> k, v;  // [sequences, kv_heads, tokens, head_dim]
  std::vector<float> q;
};

class PagesTest : public testing::OnEveryIsa {};
ADAMAS_ON_EVERY_ISA(PagesTest);

// A prompt of 1,000 tokens that ten sequences begin with: its codes are there once, and each sequence's steps are those that
// it has with codes of its own, while they grow apart.
TEST_P(PagesTest, TenSequencesWithOnePrefixHaveItsCodesOnce) {
  constexpr int64_t prompt = 1000, tokens = 1200;
  Rig rig(10, tokens, config_of());
  adamas_cache* shared = rig.make_cache(rig.params());
  adamas_cache* apart = rig.make_cache(rig.params());
  for (int64_t s = 1; s < 10; s++) rig.copy_rows(0, s, prompt);
  rig.append(shared, 0, 0, prompt);
  for (int64_t s = 1; s < 10; s++) EXPECT_OK(adamas_share(shared, 0, s, prompt));
  EXPECT_EQ(rig.places(shared), std::pair(blocks_of(prompt), 10 * blocks_of(tokens)));
  std::vector<int64_t> all(10), lengths(10, prompt);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t s : all) rig.append(apart, s, 0, prompt);
  EXPECT_TRUE(rig.step(shared, all, lengths) == rig.step(apart, all, lengths));
  for (int64_t s : all) {
    lengths[s] = prompt + 7 * s + 3;
    for (adamas_cache* cache : {shared, apart}) rig.append(cache, s, prompt, lengths[s] - prompt);
  }
  const Rig::Given grown = rig.step(shared, all, lengths);
  EXPECT_TRUE(grown == rig.step(apart, all, lengths));
  EXPECT_EQ(grown.stats.rows_sparse, 10);
  EXPECT_EQ(grown.stats.rows_stale, 0);
  // Fifteen whole blocks are shared; what follows is each one's own.
  int64_t used = prompt / block_tokens;
  for (int64_t s : all) used += blocks_of(lengths[s]) - prompt / block_tokens;
  EXPECT_EQ(rig.places(shared).first, used);
  EXPECT_OK(adamas_clear(shared, -1));
  EXPECT_EQ(rig.places(shared).first, 0);
}

// A branch writes over a row of what it shares: the other branch keeps its codes.
TEST_P(PagesTest, WritingOverASharedBlockIsNobodyElsesMatter) {
  Rig rig(2, 600, config_of());
  adamas_cache* cache = rig.make_cache(rig.params());
  rig.append(cache, 0, 0, 600);
  const Rig::Given before = rig.step(cache, {0}, {600});
  rig.copy_rows(0, 1, 600);
  EXPECT_OK(adamas_share(cache, 0, 1, 600));
  for (int64_t g = 0; g < Rig::kv_heads; g++) std::memset(rig.at(rig.k, 1, g, 130), 0, Rig::row);
  rig.append(cache, 1, 130, 1);
  EXPECT_EQ(rig.places(cache).first, blocks_of(600) + 1);
  EXPECT_TRUE(rig.step(cache, {0}, {600}) == before);
  EXPECT_EQ(rig.step(cache, {1}, {600}).stats.rows_stale, 0);
}

// A pool that is too small: what finds no place is refused with a sentence, and read densely.
TEST_P(PagesTest, WhatHasNoPlaceIsReadDensely) {
  Rig rig(2, 640, config_of());
  adamas_cache* cache = rig.make_cache(rig.params(13));
  rig.append(cache, 0, 0, 640);
  const adamas_rows keys = rig.rows(rig.k);
  ASSERT_EQ(adamas_append(cache, 1, 0, 300, &keys, nullptr), ADAMAS_OUT_OF_RANGE);
  EXPECT_NE(std::string(adamas_last_error()).find("10 of its 13 blocks"), std::string::npos) << adamas_last_error();
  const Rig::Given crowded = rig.step(cache, {1, 0}, {640, 640});
  EXPECT_EQ(crowded.stats.rows_sparse, 1);
  EXPECT_EQ(crowded.stats.rows_dense, 1);
  EXPECT_OK(adamas_clear(cache, 0));
  const Rig::Given alone = rig.step(cache, {1}, {640});
  EXPECT_EQ(alone.stats.rows_sparse, 1);
  for (int i = 0; i < Rig::q_heads * head_dim; i++)
    ASSERT_NEAR(alone.out[i], crowded.out[i], 0.05) << "all of it, and a list and its rest";
}

// Rows in pages, and codes that lie by page, in pieces behind K and V of each page, as an engine keeps them: the same bits
// as without pages, through growth, reuse of pages, and prefixes that tables share.
TEST_P(PagesTest, CodesInsideAnEnginesPagesGiveTheSameBits) {
  for (const auto& [settings, page_tokens] :
       std::vector<std::pair<Settings, int32_t>>{{{}, 64},
                                                 {{}, 128},
                                                 {{{"budget", "128"}}, 64},
                                                 {{{"preset", "paper"}, {"dense_layers", "0"}, {"budget", "128"}}, 64},
                                                 {{{"policy", "quest"}, {"budget", "128"}}, 64}}) {
    SCOPED_TRACE(::testing::Message() << "pages of " << page_tokens << ", " << ::testing::PrintToString(settings));
    constexpr int64_t tokens = 1000, pages = 40;
    const adamas_config config = config_of(settings);
    Rig rig(4, tokens, config);
    adamas_cache_params params = rig.params();
    size_t record = 0;
    EXPECT_OK(adamas_code_records(&config, &params, nullptr, 0, 0, nullptr, &record));
    // A page: K [kv_heads, page_tokens, head_dim], V, records [blocks, kv_heads].
    const int64_t half = Rig::kv_heads * page_tokens * Rig::row, blocks = page_tokens / block_tokens;
    const int64_t block_bytes = Rig::kv_heads * int64_t(record), page_bytes = 2 * half + blocks * block_bytes;
    // Places of a page follow each other at one stride: only pages of one block can hold their records.
    std::vector<std::byte> pool(size_t(pages * page_bytes)), beside(size_t(pages * blocks * block_bytes));
    const bool inside = blocks == 1;
    adamas_code_memory memory;
    EXPECT_OK(adamas_code_records(&config, &params, inside ? pool.data() + 2 * half : beside.data(),
                                  inside ? page_bytes : block_bytes, int64_t(record), &memory, nullptr));
    params.by_page = 1;
    params.blocks = pages * blocks;
    params.memory = &memory;
    adamas_cache* by_page = rig.make_cache(params);
    adamas_cache* plain = rig.make_cache(rig.params());

    constexpr int64_t per_sequence = 16;
    std::vector<int32_t> table(4 * per_sequence, -1), free(pages);
    std::iota(free.begin(), free.end(), 0);
    std::mt19937 random(3);
    std::shuffle(free.begin(), free.end(), random);
    adamas_pages where{sizeof where, page_tokens, pages, table.data(), per_sequence};
    const adamas_rows keys{pool.data(), ADAMAS_F16, 0, page_tokens * Rig::row, Rig::row, &where, page_bytes};
    adamas_rows values = keys;
    values.data = pool.data() + half;
    const auto write = [&](int64_t s, int64_t first, int64_t count) {
      for (int64_t t = first; t < first + count; t++) {
        int32_t& page = table[s * per_sequence + t / page_tokens];
        if (page < 0) page = free.back(), free.pop_back();
        for (int64_t g = 0; g < Rig::kv_heads; g++) {
          std::byte* to = pool.data() + page * page_bytes + (g * page_tokens + t % page_tokens) * Rig::row;
          std::memcpy(to, rig.at(rig.k, s, g, t), Rig::row);
          std::memcpy(to + half, rig.at(rig.v, s, g, t), Rig::row);
        }
      }
      EXPECT_OK(adamas_append(by_page, s, first, count, &keys, first % 3 == 0 ? &values : nullptr));
      rig.append(plain, s, first, count);
    };
    const auto expect_same = [&](const std::vector<int64_t>& of, const std::vector<int64_t>& lengths, const char* when) {
      SCOPED_TRACE(when);
      const Rig::Given got = rig.step(by_page, of, lengths, keys, values), expected = rig.step(plain, of, lengths);
      EXPECT_EQ(got.stats.rows_sparse, int64_t(of.size()));
      EXPECT_EQ(got.stats.rows_stale, 0);
      EXPECT_TRUE(got == expected);
    };
    write(0, 0, 700);
    expect_same({0}, {700}, "one sequence");
    for (int64_t t = 700; t < 740; t++) {
      write(0, t, 1);
      expect_same({0}, {t + 1}, "grows by a token");
    }
    // Another one whose table begins with the same pages, six blocks of them.
    rig.copy_rows(0, 1, 384);
    std::copy_n(table.begin(), 384 / page_tokens, table.begin() + per_sequence);
    rig.append(plain, 1, 0, 384);
    write(1, 384, 400);
    expect_same({1, 0}, {784, 740}, "a prefix of two");
    // The first one ends; a third one gets its pages, but for those that the second one has, and nobody says so.
    for (int64_t i = 384 / page_tokens; i < per_sequence; i++)
      if (int32_t& page = table[i]; page >= 0) free.push_back(page), page = -1;
    std::shuffle(free.begin(), free.end(), random);
    EXPECT_OK(adamas_clear(plain, 0));
    EXPECT_OK(adamas_clear(by_page, 0));
    write(2, 0, 333);
    expect_same({2, 1}, {333, 784}, "pages used again");
    for (int64_t t = 333; t < 420; t += 9) {
      write(2, t, 9);
      expect_same({1, 2}, {784, t + 9}, "pages used again, and growth");
    }
    // Drafted tokens are taken back.
    EXPECT_OK(adamas_truncate(plain, 2, 405));
    EXPECT_OK(adamas_truncate(by_page, 2, 405));
    expect_same({2}, {405}, "taken back");
    write(2, 405, 3);
    expect_same({2}, {408}, "after that");
  }
}

void expect_sentence(adamas_status status, adamas_status expected, const char* part) {
  EXPECT_EQ(status, expected);
  EXPECT_NE(std::string(adamas_last_error()).find(part), std::string::npos) << adamas_last_error();
}

TEST(BadPages, GetAStatusAndASentence) {
  Rig rig(2, 256, config_of());
  adamas_cache* cache = rig.make_cache(rig.params());
  int32_t table[8] = {0, 1, 2, 3, 3, 2, 1, 0};
  adamas_pages pages{sizeof pages, 64, 4, table, 4};
  adamas_rows rows{rig.k.data(), ADAMAS_F16, 0, 64 * Rig::row, Rig::row, &pages, Rig::kv_heads * 64 * Rig::row};
  EXPECT_OK(adamas_append(cache, 0, 0, 256, &rows, &rows));
  for (int32_t id : {-1, 4, INT32_MAX, INT32_MIN}) {
    table[6] = id;
    expect_sentence(adamas_append(cache, 1, 130, 1, &rows, nullptr), ADAMAS_OUT_OF_RANGE, "page 2 of sequence 1");
    EXPECT_OK(adamas_append(cache, 1, 0, 128, &rows, nullptr));  // what is not in view is not looked at
  }
  table[6] = 1;
  const auto bad = [&](auto&& change, adamas_status status, const char* part) {
    adamas_pages changed = pages;
    adamas_rows with = rows;
    with.pages = &changed;
    change(changed, with);
    expect_sentence(adamas_append(cache, 0, 0, 256, &with, nullptr), status, part);
    expect_sentence(adamas_append(cache, 0, 0, 256, &rows, &with), status, part);
  };
  bad([](auto& p, auto&) { p.struct_size = 3; }, ADAMAS_INVALID_ARGUMENT, "adamas_pages.struct_size");
  bad([](auto& p, auto&) { p.page_tokens = 0; }, ADAMAS_INVALID_ARGUMENT, "page_tokens");
  bad([](auto& p, auto&) { p.page_tokens = 48; }, ADAMAS_UNSUPPORTED, "power of two");
  bad([](auto& p, auto&) { p.count = -1; }, ADAMAS_INVALID_ARGUMENT, "pages.count");
  bad([](auto& p, auto&) { p.count = 3; }, ADAMAS_OUT_OF_RANGE, "of 3 pages");
  bad([](auto& p, auto&) { p.table = nullptr; }, ADAMAS_INVALID_ARGUMENT, "pages.table is NULL");
  bad([](auto& p, auto&) { p.stride = INT64_MAX; }, ADAMAS_INVALID_ARGUMENT, "pages.stride");
  bad([](auto&, auto& r) { r.stride_page = INT64_MAX; }, ADAMAS_INVALID_ARGUMENT, "past any address");

  expect_sentence(adamas_share(cache, 0, 2, 10), ADAMAS_INVALID_ARGUMENT, "sequence");
  expect_sentence(adamas_share(cache, 0, 1, 257), ADAMAS_INVALID_ARGUMENT, "length");
  adamas_cache_params params = rig.params();
  params.by_page = 1;
  adamas_cache* other = nullptr;
  expect_sentence(adamas_cache_create(&rig.config, &params, &other), ADAMAS_INVALID_ARGUMENT, "blocks");
  params.blocks = 3;
  other = rig.make_cache(params);
  expect_sentence(adamas_append(other, 0, 0, 64, &rows, nullptr), ADAMAS_OUT_OF_RANGE, "the cache's 3 blocks");
  expect_sentence(adamas_append(other, 0, 0, 64, nullptr, nullptr), ADAMAS_INVALID_ARGUMENT, "k is needed");
  const adamas_rows plain = rig.rows(rig.k);
  expect_sentence(adamas_append(other, 0, 0, 64, &plain, nullptr), ADAMAS_INVALID_ARGUMENT, "k has no pages");
  pages.page_tokens = 32;
  expect_sentence(adamas_append(other, 0, 0, 64, &rows, nullptr), ADAMAS_UNSUPPORTED, "a multiple of 64");
  expect_sentence(adamas_share(other, 0, 1, 0), ADAMAS_UNSUPPORTED, "the engine's own table");
  adamas_code_memory memory;
  std::vector<uint64_t> bytes(100'000);
  EXPECT_OK(adamas_code_records(&rig.config, &params, bytes.data(), 4096, 2048, &memory, nullptr));
  params.memory = &memory;
  memory.hash.data = nullptr;
  expect_sentence(adamas_cache_create(&rig.config, &params, &other), ADAMAS_INVALID_ARGUMENT, "memory.hash is NULL");
  memory.hash.data = reinterpret_cast<std::byte*>(bytes.data()) + 2;
  expect_sentence(adamas_cache_create(&rig.config, &params, &other), ADAMAS_INVALID_ARGUMENT, "multiples of 4");
}

}  // namespace
}  // namespace adamas
