// What a few hundred steps give, to the bit: outputs, log-sum-exps, masses, noises, selections and counts, on every
// instruction set.
//
//   bits              prints a line for every case: its name, and a hash for each instruction set of this machine
//   bits --devices    runs the smaller cases on the reference device, too, and compares
//   bits --pages      runs all cases with K and V in pages, too, and compares
//   bits --check FILE compares with lines that were printed before; what differs is told, and the exit status is 1
//
// A change that moves code and means to change nothing runs the last. A change that means to change bits prints the file
// anew, and its commit says which and why. Hashes hold for one compiler, one Highway and one C library (their exp and their
// order of sums): the file's first line names them, and under others nothing is compared.
#include <gnu/libc-version.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "adamas/adamas.h"
#include "core/testing.h"
#include "hwy/highway.h"

namespace {

using adamas::DType;

std::string built_with() {
  return "# gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__) + ", highway " +
         std::to_string(HWY_MAJOR) + "." + std::to_string(HWY_MINOR) + ", glibc " + gnu_get_libc_version();
}

// splitmix64, and a bell from sums: no library's distribution, whose numbers may differ from one to the next.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float uniform() { return float(next() >> 40) * 0x1p-24f; }
  float normal() {  // twelve numbers of 16 bits
    int64_t sum = 0;
    for (int i = 0; i < 3; i++)
      for (uint64_t draw = next(); draw != 0; draw >>= 16) sum += int64_t(draw & 0xFFFF);
    return float(sum) * 0x1p-16f - 6;
  }
  template <class T, size_t N>
  const T& of(const T (&list)[N]) {
    return list[below(N)];
  }

 private:
  uint64_t state_;
};

class Hash {
 public:
  void add(const void* bytes, size_t count) {
    for (size_t i = 0; i < count; i++) value_ = (value_ ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001B3u;
  }
  template <class T>
  void add(T value) {
    if constexpr (std::is_floating_point_v<T>)
      if (std::isnan(value)) value = std::numeric_limits<T>::quiet_NaN();  // with one sign
    add(&value, sizeof value);
  }
  uint32_t value() const { return uint32_t(value_ ^ value_ >> 32); }

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

struct Heads {
  int q, kv, dim;
};
struct Setting {
  const char *name, *value;
};

enum class Mask { none, causal, hidden, biased, alibi };
constexpr const char* mask_names[] = {"", " causal", " hidden", " biased", " alibi"};

struct Case {
  Heads heads;
  int32_t k_dtype, v_dtype;
  std::vector<Setting> settings;
  int64_t tokens, rows, sequences;
  Mask mask;
  float softcap;
  bool sink_logits, verify, rotated, in_pieces, rewritten, cut;
  uint64_t seed;

  std::string name(int number) const {
    std::string text = std::to_string(number) + ": " + std::to_string(heads.q) + "/" + std::to_string(heads.kv) + "x" +
                       std::to_string(heads.dim) + " " + adamas_dtype_name(k_dtype) + "," + adamas_dtype_name(v_dtype) +
                       " " + std::to_string(tokens) + " tokens " + std::to_string(sequences) + "x" + std::to_string(rows) +
                       " rows" + mask_names[int(mask)];
    if (softcap > 0) text += " softcap";
    if (sink_logits) text += " sink-logits";
    if (rotated) text += " rotated";
    if (in_pieces) text += " in-pieces";
    if (rewritten) text += " rewritten";
    if (cut) text += " cut";
    for (const Setting& s : settings) text += std::string(" ") + s.name + "=" + s.value;
    return text;
  }
};

Case make_case(int number) {
  constexpr Heads shapes[] = {{9, 3, 64},  {4, 4, 64},   {14, 2, 64}, {4, 2, 80},  {8, 1, 96},
                              {2, 1, 112}, {12, 2, 128}, {3, 3, 128}, {2, 2, 192}, {4, 1, 256}};
  constexpr int64_t lengths[] = {1, 3, 63, 64, 65, 127, 200, 400, 700, 1000, 1500, 2100, 2600, 3000};
  constexpr int32_t plain[] = {ADAMAS_F16, ADAMAS_F16, ADAMAS_F16, ADAMAS_F32, ADAMAS_BF16};
  constexpr const char* budgets[] = {"1", "16", "33", "64", "128", "500", "5000"};
  Random random(0xADA3A5 + uint64_t(number));
  Case c{};
  c.seed = random.next();
  c.heads = random.of(shapes);
  const bool quantised = c.heads.dim % 32 == 0 && random.one_in(4);
  c.k_dtype = quantised ? int32_t(ADAMAS_Q8_0 + random.below(6)) : random.of(plain);
  c.v_dtype = quantised && random.one_in(2) ? int32_t(ADAMAS_Q8_0 + random.below(6))
              : random.one_in(4)            ? random.of(plain)
                                            : c.k_dtype;
  c.tokens = random.of(lengths);
  if (random.one_in(2))
    c.tokens = std::max<int64_t>(c.tokens, 1000 + random.below(2000));  // most steps that people run are sparse
  c.sequences = random.one_in(3) ? 2 + random.below(2) : 1;
  c.rows = random.one_in(3) ? std::min<int64_t>(c.tokens, 2 + random.below(14)) : 1;
  c.mask = random.one_in(2) ? (c.rows > 1 ? Mask::causal : Mask::none) : Mask(random.below(5));
  c.softcap = random.one_in(6) ? 12.0f : 0.0f;
  c.sink_logits = random.one_in(8);
  c.verify = random.one_in(2);
  c.rotated = random.one_in(8);
  c.in_pieces = random.one_in(3);
  c.rewritten = random.one_in(6);
  c.cut = c.tokens > 100 && random.one_in(6);
  auto& set = c.settings;
  if (random.one_in(10)) set.push_back({"preset", "paper"});
  if (random.one_in(4)) set.push_back({"policy", random.of({"full", "quest", "streaming", "oracle"})});
  if (random.one_in(4)) set.push_back({"estimator", random.of({"dot", "manhattan"})});
  if (random.one_in(3))
    set.push_back({"budget", random.of(budgets)});
  else if (random.one_in(3))
    set.push_back({"share", random.of({"0.0001", "0.002", "0.02", "1"})});
  if (random.one_in(5)) set.push_back({"recent", random.of({"1", "7"})});
  if (random.one_in(5) || (!set.empty() && std::string(set.back().value) == "1")) set.push_back({"sinks", "0"});
  if (random.one_in(5)) set.push_back({"min_mass", random.of({"0.5", "0.9", "0.99"})});
  if (random.one_in(4)) set.push_back({"max_noise", random.of({"0", "0.05", "0.3"})});
  set.push_back({"min_context", random.of({"0", "0", "0", "1000"})});
  return c;
}

// [sequences, kv_heads, tokens, head_dim] of any dtype: a vector that all rows of a head share, topics that come in runs,
// noise.
class Memory {
 public:
  Memory(const Case& c, int32_t dtype, float shared, Random& random)
      : heads_(c.heads),
        tokens_(c.tokens),
        dtype_(DType(dtype)),
        row_(adamas::row_bytes(dtype_, c.heads.dim)),
        bytes_(size_t(c.sequences * c.heads.kv * c.tokens * row_) + 64) {
    for (int64_t s = 0; s < c.sequences; s++)
      for (int g = 0; g < heads_.kv; g++) {
        std::vector<float> common(heads_.dim), topics(8 * size_t(heads_.dim)), row(heads_.dim);
        for (float& x : common) x = shared * random.normal();
        for (float& x : topics) x = 0.8f * random.normal();
        int64_t topic = 0;
        for (int64_t t = 0; t < c.tokens; t++) {
          if (random.one_in(12)) topic = random.below(8);
          for (int d = 0; d < heads_.dim; d++) row[d] = common[d] + topics[topic * heads_.dim + d] + random.normal();
          if (t < 2)
            for (float& x : row) x *= 1.5f;
          write(s, g, t, row);
        }
      }
  }
  void write(int64_t s, int g, int64_t t, const std::vector<float>& row) {
    adamas::testing::store_row(at(s, g, t), dtype_, row.data(), heads_.dim);
  }
  std::vector<float> read(int64_t s, int g, int64_t t) {
    std::vector<float> row(heads_.dim);
    for (int d = 0; d < heads_.dim; d++) row[d] = adamas::load_f32(at(s, g, t), dtype_, d);
    return row;
  }
  adamas_rows view() {
    if (pages_.page_tokens == 0)
      return {bytes_.data(), int32_t(dtype_), heads_.kv * tokens_ * row_, tokens_ * row_, row_, nullptr, 0};
    pages_.table = table_.data();
    return {bytes_.data(), int32_t(dtype_), 0, pages_.page_tokens * row_, row_, &pages_, page_bytes()};
  }
  // The same rows in pages that lie anywhere, some of them nobody's.
  void divide(int32_t page_tokens, Random& random) {
    const int64_t sequences = int64_t(bytes_.size()) / (heads_.kv * tokens_ * row_);
    const int64_t of_sequence = (tokens_ + page_tokens - 1) / page_tokens;
    const std::vector<std::byte> rows = bytes_;
    pages_ = {sizeof pages_, page_tokens, sequences * of_sequence + 7, nullptr, of_sequence + 2};
    std::vector<int32_t> ids(size_t(pages_.count));
    std::iota(ids.begin(), ids.end(), 0);
    for (size_t i = ids.size() - 1; i > 0; i--) std::swap(ids[i], ids[size_t(random.below(int64_t(i) + 1))]);
    table_.assign(size_t(sequences * pages_.stride), -7);  // what is behind a sequence's pages is nobody's business
    for (int64_t s = 0, next = 0; s < sequences; s++)
      for (int64_t i = 0; i < of_sequence; i++) table_[size_t(s * pages_.stride + i)] = ids[size_t(next++)];
    bytes_.assign(size_t(pages_.count * page_bytes()), std::byte{0xFF});  // NaN, where somebody looks beside the rows
    const std::byte* row = rows.data();
    for (int64_t s = 0; s < sequences; s++)
      for (int g = 0; g < heads_.kv; g++)
        for (int64_t t = 0; t < tokens_; t++, row += row_) std::memcpy(at(s, g, t), row, size_t(row_));
  }

 private:
  int64_t page_bytes() const { return heads_.kv * pages_.page_tokens * row_ + 32; }
  std::byte* at(int64_t s, int g, int64_t t) {
    if (pages_.page_tokens == 0) return bytes_.data() + ((s * heads_.kv + g) * tokens_ + t) * row_;
    return bytes_.data() + table_[size_t(s * pages_.stride + t / pages_.page_tokens)] * page_bytes() +
           (g * pages_.page_tokens + t % pages_.page_tokens) * row_;
  }

  Heads heads_;
  int64_t tokens_;
  DType dtype_;
  int64_t row_;
  std::vector<std::byte> bytes_;
  adamas_pages pages_{};  // page_tokens 0: not paged
  std::vector<int32_t> table_;
};

void expect(adamas_status status) {
  if (status == ADAMAS_OK) return;
  std::fprintf(stderr, "bits: %s\n", adamas_last_error());
  std::exit(2);
}

// K and V of a case, and the numbers that follow.
struct Inputs {
  explicit Inputs(const Case& c)
      : random(c.seed), k(c, c.k_dtype, random.one_in(3) ? 6.0f : 0.5f, random), v(c, c.v_dtype, 0.3f, random) {}
  Random random;
  Memory k, v;
};

// What the heads of a step gave, for a comparison of devices: of each (sequence, row, head).
struct Given {
  std::vector<float> out, lse, mass, noise;
  std::vector<int64_t> counts;                   // of the step
  std::vector<std::vector<int64_t>> selections;  // of the last row's heads
};

// One case with the instruction set in use: three steps, with what happens to a cache in between. The inputs are a copy.
// given: [steps], or NULL.
uint32_t run(const Case& c, Inputs inputs, int32_t device = ADAMAS_DEVICE_CPU, std::vector<Given>* given = nullptr) {
  auto& [random, k, v] = inputs;
  adamas_config config;
  adamas_config_init(&config);
  for (const Setting& s : c.settings) expect(adamas_config_set(&config, s.name, s.value));
  Hash hash;
  const adamas_status checked = adamas_config_check(&config);
  hash.add(int32_t(checked));
  if (checked != ADAMAS_OK) return hash.value();

  const adamas_rows keys = k.view(), values = v.view();
  const auto [q_heads, kv_heads, dim] = c.heads;
  adamas_cache* cache = nullptr;
  adamas_plan* plan = nullptr;
  const adamas_cache_params cache_params{sizeof cache_params,
                                         2,
                                         kv_heads,
                                         dim,
                                         c.sequences,
                                         c.tokens,
                                         c.rotated ? ADAMAS_ROTATED_KEYS : 0,
                                         device,
                                         0,
                                         0,
                                         nullptr,
                                         0};
  const adamas_plan_params plan_params{sizeof plan_params, q_heads, kv_heads, dim, c.tokens, 2, device, 0};
  expect(adamas_cache_create(&config, &cache_params, &cache));
  expect(adamas_plan_create(&config, &plan_params, &plan));
  for (int64_t s = 0; s < c.sequences; s++)
    for (int64_t first = 0; first < c.tokens;) {
      const int64_t count = c.in_pieces ? std::min(c.tokens - first, 1 + random.below(150)) : c.tokens;
      const bool values_too = random.one_in(2);
      expect(adamas_append(cache, s, first, count, &keys, values_too ? &values : nullptr));
      first += count;
    }

  const int64_t out_size = c.sequences * c.rows * q_heads;
  std::vector<float> q(out_size * dim), out(out_size * dim), lse(out_size), mass(out_size), noise(out_size),
      mask(c.sequences * c.rows * c.tokens);
  std::vector<float> slopes(q_heads), sink_logits(q_heads);
  std::vector<int64_t> indices(c.tokens);
  for (float& slope : slopes) slope = c.mask == Mask::alibi ? 0.01f * random.uniform() : random.uniform();
  for (float& logit : sink_logits) logit = 3 * random.normal();
  for (int step = 0; step < 3; step++) {
    for (int64_t i = 0; i < c.sequences * c.rows; i++)  // half of what some key says, half noise
      for (int h = 0; h < q_heads; h++) {
        const std::vector<float> key = k.read(i / c.rows, h / (q_heads / kv_heads), random.below(c.tokens));
        for (int d = 0; d < dim; d++) q[(i * q_heads + h) * dim + d] = 0.5f * key[d] + 0.7f * random.normal();
      }
    for (float& x : mask)
      x = c.mask == Mask::hidden && random.one_in(5) ? -INFINITY
          : c.mask == Mask::biased                   ? (random.one_in(9) ? -INFINITY : random.normal())
                                                     : 0.0f;
    adamas_step_stats stats{};
    stats.struct_size = sizeof stats;
    adamas_step_params p{};
    p.struct_size = sizeof p;
    p.threads = 1 + step % 2;
    p.batch = c.sequences;
    p.rows = c.rows;
    p.causal = c.mask == Mask::causal;
    p.q = q.data();
    p.q_stride_head = p.out_stride_head = dim * 4;
    p.q_stride_row = p.out_stride_row = q_heads * dim * 4;
    p.q_stride_batch = p.out_stride_batch = c.rows * q_heads * dim * 4;
    p.k = keys;
    p.v = values;
    p.out = out.data();
    p.lse = lse.data();
    p.softcap = c.softcap;
    if (step != 1) p.mass = mass.data(), p.noise = noise.data();
    if (c.mask == Mask::hidden || c.mask == Mask::biased) {
      p.mask = mask.data();
      p.mask_stride_row = c.tokens * 4;
      p.mask_stride_batch = c.rows * c.tokens * 4;
    }
    if (c.mask == Mask::biased || c.mask == Mask::alibi) p.slopes = slopes.data();
    if (c.sink_logits) p.sink_logits = sink_logits.data();
    p.verify = c.verify;
    p.verify_rows = c.verify ? 16 : 0;
    p.stats = &stats;
    expect(adamas_step(plan, cache, &p));
    Given seen;
    if (given != nullptr)
      seen = {out,
              lse,
              step != 1 ? mass : std::vector<float>{},
              step != 1 ? noise : std::vector<float>{},
              {stats.rows_sparse, stats.rows_dense, stats.heads_guarded, stats.heads_widened, stats.blocks_encoded,
               stats.rows_stale},
              {}};
    for (float x : out) hash.add(x);
    for (float x : lse) hash.add(x);
    if (step != 1) {
      for (float x : mass) hash.add(x);
      for (float x : noise) hash.add(x);
    }
    for (int64_t n : {stats.rows_sparse, stats.rows_dense, stats.tokens_visible, stats.tokens_selected, stats.rows_read,
                      stats.heads_sparse, stats.heads_guarded, stats.heads_widened, stats.blocks_encoded, stats.rows_stale})
      hash.add(n);
    for (int h = 0; h < q_heads; h++) {
      int64_t count = 0;
      expect(adamas_selection(plan, h, indices.data(), int64_t(indices.size()), &count));
      for (int64_t i = 0; i < count; i++) hash.add(indices[i]);
      if (given != nullptr) seen.selections.emplace_back(indices.begin(), indices.begin() + count);
    }
    if (given != nullptr) given->push_back(seen);
    // Between the steps rows change: told, or behind the cache's back.
    if (c.rewritten) {
      const int64_t s = random.below(c.sequences), first = random.below(c.tokens),
                    count = std::min<int64_t>(c.tokens - first, 5);
      for (int g = 0; g < kv_heads; g++)
        for (int64_t t = first; t < first + count; t++) k.write(s, g, t, k.read(s, g, random.below(c.tokens)));
      if (!c.verify || random.one_in(2)) expect(adamas_append(cache, s, first, count, &keys, &values));
    }
    if (c.cut) {
      expect(adamas_truncate(cache, 0, c.tokens / 2 + random.below(50)));
      for (int g = 0; g < kv_heads; g++)
        for (int64_t t = c.tokens * 3 / 4; t < c.tokens; t++) k.write(0, g, t, k.read(0, g, random.below(c.tokens)));
      if (random.one_in(2)) expect(adamas_append(cache, 0, c.tokens / 2, c.tokens - c.tokens / 2, &keys, nullptr));
    }
  }
  adamas_plan_destroy(plan);
  adamas_cache_destroy(cache);
  return hash.value();
}

constexpr int cases = 300;

std::vector<std::string> isa_list() {
  std::vector<std::string> names;
  for (int32_t i = 0; i < adamas_isa_count(); i++) names.emplace_back(adamas_isa_name(i));
  return names;
}

}  // namespace

// The same steps on the CPU and, in pages, on the reference device. Codes are the same bits, and so are noises, guards, and
// what is selected by a fixed budget; outputs of a fixed budget and of dense steps are within the rounding of f32. Of a list
// and its rest, estimated weights are within 4% (rest/rest.h), and with them the sum that thresholds follow from: lists may
// differ at their ends, a log-sum-exp by log(1.04) and what that moves, and outputs by as much of the rest, which is large
// where `share` is.
int compare_devices() {
  int compared = 0, different = 0;
  double worst = 0, worst_list = 0;
  Random random(78);
  for (int number = 0; number < cases; number++) {
    const Case c = make_case(number);
    if (c.tokens * c.rows * c.sequences * c.heads.q * c.heads.dim > 6'000'000) continue;  // seconds each
    const Inputs inputs(c);
    std::vector<Given> cpu, reference;
    run(c, inputs, ADAMAS_DEVICE_CPU, &cpu);
    Inputs paged = inputs;  // rows lie elsewhere, and are the same
    paged.k.divide(random.of({16, 64}), random);
    paged.v.divide(random.of({16, 64}), random);
    run(c, paged, ADAMAS_DEVICE_REFERENCE, &reference);
    std::string why;
    const auto differ = [&](const std::string& what) {
      if (why.empty()) why = what;
    };
    bool lists = true, floor = false;
    for (const Setting& s : c.settings) {
      lists &=
          std::strcmp(s.name, "budget") != 0 && std::strcmp(s.name, "preset") != 0 && std::strcmp(s.name, "policy") != 0;
      floor |= std::strcmp(s.name, "min_mass") == 0;
    }
    for (size_t step = 0; step < cpu.size(); step++) {
      const Given &a = cpu[step], &b = reference[step];
      if (a.noise != b.noise) differ("noise");
      for (size_t i = 0; i < a.counts.size(); i++)
        if (a.counts[i] != b.counts[i] && !(lists && i == 5))
          differ("count " + std::to_string(i) + ": " + std::to_string(a.counts[i]) + ", " + std::to_string(b.counts[i]));
      if (!lists && !floor && a.selections != b.selections) differ("selections");
      for (size_t i = 0; i < a.lse.size(); i++) {
        double far = 0;
        for (int d = 0; d < c.heads.dim; d++) {
          const float x = a.out[i * size_t(c.heads.dim) + size_t(d)], y = b.out[i * size_t(c.heads.dim) + size_t(d)];
          if (std::isnan(x) != std::isnan(y)) differ("NaN");
          if (!std::isnan(x)) far = std::max(far, double(std::abs(x - y)));
        }
        (lists ? worst_list : worst) = std::max(lists ? worst_list : worst, far);
        if (far > (lists ? 0.1 : 0.005)) differ("out by " + std::to_string(far));
        if (std::abs(a.lse[i] - b.lse[i]) > (lists ? 0.06 : 0.005))
          differ("lse " + std::to_string(a.lse[i]) + ", " + std::to_string(b.lse[i]));
      }
      for (size_t i = 0; i < a.mass.size(); i++)
        if (std::isnan(a.mass[i]) != std::isnan(b.mass[i]) ||
            (!std::isnan(a.mass[i]) && std::abs(a.mass[i] - b.mass[i]) > 0.02))
          differ("mass " + std::to_string(a.mass[i]) + ", " + std::to_string(b.mass[i]));
    }
    compared++;
    different += !why.empty();
    if (!why.empty()) std::printf("%s: %s\n", c.name(number).c_str(), why.c_str());
  }
  std::printf("bits: %d cases on two devices, %d differ; the farthest outputs %.5f, with lists %.5f\n", compared, different,
              worst, worst_list);
  return different > 0 || compared == 0;
}

// The same steps with K and V in pages: the same bits.
int compare_pages() {
  int different = 0;
  Random random(77);
  for (int number = 0; number < cases; number++) {
    const Case c = make_case(number);
    const Inputs inputs(c);
    Inputs paged = inputs;
    paged.k.divide(random.of({1, 16, 32, 64, 128}), random);
    paged.v.divide(random.of({16, 32, 64, 128}), random);
    if (run(c, inputs) == run(c, paged)) continue;
    different++;
    std::printf("%s: other bits in pages\n", c.name(number).c_str());
  }
  std::printf("bits: %d cases in pages, %d differ\n", cases, different);
  return different > 0;
}

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--pages") == 0) return compare_pages();
  if (argc == 2 && std::strcmp(argv[1], "--devices") == 0) return compare_devices();
  const bool checking = argc == 3 && std::strcmp(argv[1], "--check") == 0;
  if (argc > 1 && !checking) {
    std::fprintf(stderr, "usage: bits [--devices | --pages | --check FILE]\n");
    return 2;
  }
  std::map<std::string, std::string> before;  // of "case / instruction set"
  if (checking) {
    std::ifstream file(argv[2]);
    std::string line;
    if (!std::getline(file, line)) return std::fprintf(stderr, "bits: %s cannot be read\n", argv[2]), 2;
    if (line != built_with()) {
      std::printf("bits: nothing is compared: %s was made with%s, this is%s\n", argv[2], line.c_str() + 1,
                  built_with().c_str() + 1);
      return 0;
    }
    while (std::getline(file, line)) {  // name | AVX2 01234567 SSE4 89abcdef ...
      const size_t bar = line.find(" |");
      size_t at = bar + 3;
      while (at < line.size()) {
        const size_t space = line.find(' ', at);
        before[line.substr(0, bar) + " / " + line.substr(at, space - at)] = line.substr(space + 1, 8);
        at = space + 10;
      }
    }
  } else {
    std::printf("%s\n", built_with().c_str());
  }
  int compared = 0, different = 0;
  for (int number = 0; number < cases; number++) {
    const Case c = make_case(number);
    const std::string name = c.name(number);
    const Inputs inputs(c);
    std::string line;
    for (const std::string& isa : isa_list()) {
      expect(adamas_isa_force(isa.c_str()));
      char hash[16];
      std::snprintf(hash, sizeof hash, "%08x", unsigned(run(c, inputs)));
      line += " " + isa + " " + hash;
      if (const auto known = before.find(name + " / " + isa); known != before.end()) {
        compared++;
        if (known->second == hash) continue;
        different++;
        std::printf("%s / %s: %s, was %s\n", name.c_str(), isa.c_str(), hash, known->second.c_str());
      }
    }
    if (!checking) std::printf("%s |%s\n", name.c_str(), line.c_str());
  }
  if (!checking) return 0;
  std::printf("bits: %d steps' hashes compared, %d differ\n", compared, different);
  return different > 0 || compared == 0;
}
