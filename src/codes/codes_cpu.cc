#include "codes/codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codes/hash_constants.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codes/codes_cpu.cc"
#include "hwy/foreach_target.h"

#include "core/sum-inl.h"
#include "hadamard/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adamas {
namespace HWY_NAMESPACE {

// Loads a row as f32, NaN as 0 and large values cut.
template <class T>
void LoadRow(const T* row, int head_dim, float* HWY_RESTRICT out) {
  const F32 d;
  const auto limit = hn::Set(d, largest_key);
  for (int i = 0; i < head_dim; i += static_cast<int>(hn::Lanes(d))) {
    const auto x = load(d, row, i);
    const auto number = hn::IfThenElseZero(hn::Eq(x, x), x);
    hn::StoreU(hn::Min(hn::Max(number, hn::Neg(limit)), limit), d, out + i);
  }
}

// Mean of the counted rows into int16 and one scale; `centre` becomes what is stored, read back.
void Centre(const float* x, int head_dim, uint64_t counted, int16_t* stored_centre, float* stored_scale,
            float* HWY_RESTRICT centre) {
  const F32 d;
  const hn::Rebind<int16_t, F32> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto count = hn::Set(d, static_cast<float>(std::max(1, std::popcount(counted))));
  auto largest = hn::Zero(d);
  for (int i = 0; i < head_dim; i += lanes) {
    auto sum = hn::Zero(d);
    for_each_bit(counted, [&](int t) { sum = hn::Add(sum, hn::LoadU(d, x + t * head_dim + i)); });
    const auto mean = hn::Div(sum, count);
    largest = hn::Max(largest, hn::Abs(mean));
    hn::StoreU(mean, d, centre + i);
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  const bool centred = max > 1e-30f;
  const float scale = centred ? max / 32767.0f : 0.0f;
  const auto inverse = hn::Set(d, centred ? 32767.0f / max : 0.0f);
  const auto limit = hn::Set(d, 32767.0f);
  for (int i = 0; i < head_dim; i += lanes) {
    const auto units = hn::Mul(hn::LoadU(d, centre + i), inverse);
    const auto stored = hn::NearestInt(hn::Min(hn::Max(units, hn::Neg(limit)), limit));
    hn::StoreU(hn::DemoteTo(d16, stored), d16, stored_centre + i);
    hn::StoreU(hn::Mul(hn::ConvertTo(d, stored), hn::Set(d, scale)), d, centre + i);
  }
  *stored_scale = scale;
}

// Takes the centre off every live row, in place, and answers with the RMS of the counted ones. The squares of a dimension
// are added row by row and the dimensions in order, in double: one order on every machine.
float Residuals(float* HWY_RESTRICT x, int head_dim, uint64_t live, uint64_t counted, const float* centre) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  HWY_ALIGN float squares[max_head_dim];
  for (int i = 0; i < head_dim; i += lanes) {
    const auto c = hn::LoadU(d, centre + i);
    auto sum = hn::Zero(d);
    for_each_bit(live, [&](int t) {
      const auto r = hn::Sub(hn::LoadU(d, x + t * head_dim + i), c);
      hn::StoreU(r, d, x + t * head_dim + i);
      if (counted >> t & 1) sum = hn::Add(sum, hn::Mul(r, r));
    });
    hn::StoreU(sum, d, squares + i);
  }
  double sum = 0;
  for (int i = 0; i < head_dim; i++) sum += squares[i];
  const int count = std::popcount(counted);
  return count > 0 ? static_cast<float>(std::sqrt(sum / (static_cast<double>(count) * head_dim))) : 0.0f;
}

// The bits of 32 compares, dimension d in bit d, as one word of a plane. A last half chunk leaves its upper bits 0.
void Pack(const float* r, int head_dim, float threshold, int token, const Block& block) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto t = hn::Set(d, threshold);
  const auto zero = hn::Zero(d);
  for (int start = 0; start < head_dim; start += chunk_dims) {
    uint32_t high = 0, low = 0;
    const int dims = std::min(chunk_dims, head_dim - start);
    for (int i = 0; i < dims; i += lanes) {
      const auto v = hn::LoadU(d, r + start + i);
      const auto positive = hn::Gt(v, zero);
      const auto outer = hn::Gt(v, hn::IfThenElse(positive, t, hn::Neg(t)));  // codes 3 and 1
      uint8_t bits[8] = {};
      hn::StoreMaskBits(d, positive, bits);
      high |= (uint32_t{bits[0]} | uint32_t{bits[1]} << 8) << i;
      uint8_t low_bits[8] = {};
      hn::StoreMaskBits(d, outer, low_bits);
      low |= (uint32_t{low_bits[0]} | uint32_t{low_bits[1]} << 8) << i;
    }
    const size_t word = block.word(token, start / chunk_dims);
    block.high[word] = high;
    block.low[word] = low;
  }
}

HWY_INLINE uint32_t HashRow(const std::byte* row, int64_t bytes) {
  const hn::CappedTag<uint32_t, 8> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  const auto add = [&](const void* words, int64_t first, int64_t count) HWY_ATTR {
    for (int64_t i = 0; i < count; i += lanes)
      sum = hn::Add(sum, hn::Mul(hn::LoadU(d, static_cast<const uint32_t*>(words) + i),
                                 hn::LoadU(d, hash_constants.data() + first + i)));
  };
  // Rows of 16-bit and 32-bit elements are whole pieces of 8 words; what is left of a quantised row is filled up with zeros.
  constexpr int64_t piece = 32;
  const int64_t whole = bytes / piece * piece;
  add(row, 0, whole / 4);
  if (whole < bytes) {
    uint32_t rest[piece / 4] = {};
    std::memcpy(rest, row + whole, bytes - whole);
    add(rest, whole / 4, piece / 4);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// The hashes of four rows at once, whose sums across lanes are taken together.
HWY_INLINE void HashFour(const std::byte* const (&rows)[4], int64_t bytes, uint32_t* hashes) {
  const hn::CappedTag<uint32_t, 16> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (bytes % (lanes * 4) != 0) {
    for (int i = 0; i < 4; i++) hashes[i] = HashRow(rows[i], bytes);
    return;
  }
  auto a = hn::Zero(d), b = a, c = a, e = a;
  const auto at = [&](int row, int64_t i)
                      HWY_ATTR { return hn::LoadU(d, reinterpret_cast<const uint32_t*>(rows[row]) + i); };
  for (int64_t i = 0; i < bytes / 4; i += lanes) {
    const auto constants = hn::LoadU(d, hash_constants.data() + i);
    a = hn::Add(a, hn::Mul(at(0, i), constants));
    b = hn::Add(b, hn::Mul(at(1, i), constants));
    c = hn::Add(c, hn::Mul(at(2, i), constants));
    e = hn::Add(e, hn::Mul(at(3, i), constants));
  }
  SumLanesOfFour(a, b, c, e, hashes);
}

void EncodeBlock(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding, bool rotate,
                 const Block& block, float* x) {
  if (~live != 0) {
    std::memset(block.high, 0, block.layout.code_words() * sizeof(uint32_t));
    std::memset(block.hash, 0, block_tokens * sizeof(uint32_t));
  }
  with_dtype(rows.dtype, [&]<class T>(T) {
    for_each_bit(live, [&](int t) {
      LoadRow(reinterpret_cast<const T*>(rows.row(t)), head_dim, x + t * head_dim);
      if (rotate) rotate_row(x + t * head_dim, head_dim);
      block.hash[t] = HashRow(rows.row(t), row_bytes(rows.dtype, head_dim));
    });
  });
  float threshold = paper_threshold;
  if (coding == Coding::paper) {
    std::memset(block.centre, 0, head_dim * sizeof(int16_t));
    *block.centre_scale = 0;
    *block.sigma = paper_threshold / threshold_sigmas;
  } else {
    HWY_ALIGN float centre[max_head_dim];
    const uint64_t counted = rows_that_count(live, first_block);
    Centre(x, head_dim, counted, block.centre, block.centre_scale, centre);
    const float sigma = Residuals(x, head_dim, live, counted, centre);
    *block.sigma = sigma > *block.centre_scale ? sigma : 0.0f;
    threshold = threshold_sigmas * *block.sigma;
  }
  for_each_bit(live, [&](int t) { Pack(x + t * head_dim, head_dim, threshold, t, block); });
}

void EncodeMean(const Rows& rows, int head_dim, uint64_t live, bool first_block, int16_t* mean, float* scale, float* x) {
  const uint64_t counted = rows_that_count(live, first_block);
  with_dtype(rows.dtype, [&]<class T>(T) {
    for_each_bit(counted, [&](int t) { LoadRow(reinterpret_cast<const T*>(rows.row(t)), head_dim, x + t * head_dim); });
  });
  HWY_ALIGN float centre[max_head_dim];
  Centre(x, head_dim, counted, mean, scale, centre);
}

int64_t CountStale(const Rows& rows, int head_dim, const Codes& codes, const int32_t* tokens, int64_t count) {
  const int64_t bytes = row_bytes(rows.dtype, head_dim);
  constexpr int64_t ahead = 8;  // a power of two: rows fetched before they are hashed: they lie far apart
  const std::byte* at[2 * ahead];
  const auto point = [&](int64_t i) { at[i & (2 * ahead - 1)] = rows.row(tokens[i]); };
  for (int64_t i = 0; i < std::min(ahead, count); i++) point(i);
  int64_t stale = 0;
  for (int64_t i = 0; i < count; i += 4) {
    const std::byte* four[4];
    uint32_t hashes[4];
    for (int64_t j = 0; j < 4; j++) {
      four[j] = at[std::min(i + j, count - 1) & (2 * ahead - 1)];
      if (i + j + ahead >= count) continue;
      point(i + j + ahead);
      fetch_row(at[(i + j + ahead) & (2 * ahead - 1)], bytes);
      __builtin_prefetch(codes.hash_of(tokens[i + j + ahead]), 0, 2);
    }
    HashFour(four, bytes, hashes);
    for (int64_t j = 0; j < std::min<int64_t>(4, count - i); j++) stale += hashes[j] != *codes.hash_of(tokens[i + j]);
  }
  return stale;
}

}  // namespace HWY_NAMESPACE
}  // namespace adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adamas {

HWY_EXPORT(EncodeBlock);
HWY_EXPORT(EncodeMean);
HWY_EXPORT(CountStale);

void encode_block(const Rows& rows, int head_dim, uint64_t live, bool first_block, Coding coding, bool rotate,
                  const Block& block, float* scratch) {
  HWY_DYNAMIC_DISPATCH(EncodeBlock)(rows, head_dim, live, first_block, coding, rotate, block, scratch);
}

void encode_mean(const Rows& rows, int head_dim, uint64_t live, bool first_block, int16_t* mean, float* scale,
                 float* scratch) {
  HWY_DYNAMIC_DISPATCH(EncodeMean)(rows, head_dim, live, first_block, mean, scale, scratch);
}

int64_t count_stale(const Rows& rows, int head_dim, const Codes& codes, const int32_t* tokens, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(CountStale)(rows, head_dim, codes, tokens, count);
}

}  // namespace adamas
#endif
