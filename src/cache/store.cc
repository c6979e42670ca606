#include "cache/store.h"

#include <cstring>

#include "core/config.h"

namespace adamas {

std::array<Kind, 8> kinds_of(const adamas_config& config, int head_dim) {
  const BlockLayout layout{head_dim};
  const int64_t f32 = sizeof(float), rest = has_rest(config), quest = config.policy == ADAMAS_POLICY_QUEST;
  return {{{"codes", &adamas_code_memory::codes, int64_t(layout.code_bytes())},
           {"centre", &adamas_code_memory::centre, int64_t(layout.centre_bytes())},
           {"hash", &adamas_code_memory::hash, block_tokens * int64_t(sizeof(uint32_t))},
           {"centre_scale", &adamas_code_memory::centre_scale, f32},
           {"sigma", &adamas_code_memory::sigma, f32},
           {"mean", &adamas_code_memory::mean, rest * int64_t(layout.centre_bytes())},
           {"mean_scale", &adamas_code_memory::mean_scale, rest * f32},
           {"bounds", &adamas_code_memory::bounds, quest * quest_block(head_dim) * f32}}};
}

Store::Store(const adamas_config& config, const adamas_cache_params& params, int64_t pool)
    : layout_{params.head_dim}, kinds_(kinds_of(config, params.head_dim)), memory_{} {
  if (params.memory != nullptr) {
    memory_ = *params.memory;
    return;
  }
  const auto of_kind = [&](const Kind& kind) { return (product(pool, kind.bytes) + 63) / 64 * 64; };
  int64_t of_head = 0;
  for (const Kind& kind : kinds_) of_head += of_kind(kind);
  ours_ = make_array<std::byte>(product(params.kv_heads, of_head));
  std::byte* next = ours_.get();
  for (const Kind& kind : kinds_) {
    memory_.*kind.array = {next, kind.bytes, of_head};
    next += of_kind(kind);
  }
}

void Store::copy(int kv_head, int64_t place, std::byte* to) const {
  for (const Kind& kind : kinds_) {
    if (kind.bytes > 0) std::memcpy(to, of_head<std::byte>(memory_.*kind.array, kv_head).at(place), size_t(kind.bytes));
    to += kind.bytes;
  }
}

Codes Store::codes(int kv_head, Where where) const {
  Codes codes;
  codes.layout = layout_;
  codes.words = of_head<uint32_t>(memory_.codes, kv_head, where.first);
  codes.centre = of_head<int16_t>(memory_.centre, kv_head, where.first);
  codes.hash = of_head<uint32_t>(memory_.hash, kv_head, where.first);
  codes.centre_scale = of_head<float>(memory_.centre_scale, kv_head, where.first);
  codes.sigma = of_head<float>(memory_.sigma, kv_head, where.first);
  codes.places = where.places;
  if (where.places == nullptr && codes.hash.stride == block_tokens * int64_t(sizeof(uint32_t)))
    codes.hashes = codes.hash.first;
  return codes;
}

Means Store::means(int kv_head, Where where) const {
  return {of_head<int16_t>(memory_.mean, kv_head, where.first), of_head<float>(memory_.mean_scale, kv_head, where.first),
          where.places};
}

QuestBounds Store::bounds(int kv_head, Where where) const {
  return {of_head<float>(memory_.bounds, kv_head, where.first), where.places};
}

}  // namespace adamas
