// Structs that grow. A caller that was built against an older header gives a smaller one, whose struct_size says so: fields
// that it does not know take their defaults, and nothing is written behind what it has. A new field goes to the end, and
// begins where the struct ended before (never in its padding, which an older caller leaves unset).
#pragma once

#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>

#include "adamas/adamas.h"
#include "core/config.h"
#include "core/status.h"

namespace adamas {

// What a struct is called, and where the fields begin that a caller may lack.
struct Growing {
  const char* name;
  size_t least;
};
constexpr Growing growing(const adamas_config*) { return {"adamas_config", offsetof(adamas_config, share)}; }
constexpr Growing growing(const adamas_cache_params*) {
  return {"adamas_cache_params", offsetof(adamas_cache_params, memory)};
}
constexpr Growing growing(const adamas_code_memory*) { return {"adamas_code_memory", sizeof(adamas_code_memory)}; }
constexpr Growing growing(const adamas_pages*) { return {"adamas_pages", sizeof(adamas_pages)}; }
constexpr Growing growing(const adamas_append_params*) { return {"adamas_append_params", sizeof(adamas_append_params)}; }
constexpr Growing growing(const adamas_plan_params*) {
  return {"adamas_plan_params", offsetof(adamas_plan_params, max_rows)};
}
constexpr Growing growing(const adamas_step_params*) { return {"adamas_step_params", offsetof(adamas_step_params, slopes)}; }
constexpr Growing growing(const adamas_score_params*) { return {"adamas_score_params", sizeof(adamas_score_params)}; }
constexpr Growing growing(const adamas_select_params*) { return {"adamas_select_params", sizeof(adamas_select_params)}; }
constexpr Growing growing(const adamas_attend_params*) { return {"adamas_attend_params", sizeof(adamas_attend_params)}; }
constexpr Growing growing(const adamas_step_stats*) {
  return {"adamas_step_stats", offsetof(adamas_step_stats, tokens_visible)};
}
constexpr Growing growing(const adamas_step_times*) { return {"adamas_step_times", offsetof(adamas_step_times, look)}; }

template <class Struct>
Status check_size(const Struct* given) {
  const auto [name, least] = growing(given);
  if (given == nullptr) return invalid(std::string(name) + " is NULL");
  if (given->struct_size < least || given->struct_size > sizeof(Struct))
    return invalid(std::string(name) + ".struct_size is " + std::to_string(given->struct_size) + "; it is sizeof(" + name +
                   "), and this library knows " + std::to_string(least) + " to " + std::to_string(sizeof(Struct)) +
                   " bytes of it");
  return {};
}

// What the caller gave, and defaults. given: of a right size.
template <class Struct>
Struct whole(const Struct* given) {
  Struct all{};
  if constexpr (std::is_same_v<Struct, adamas_config>) all = default_config();
  std::memcpy(&all, given, given->struct_size);
  all.struct_size = sizeof all;
  return all;
}

// As much as the caller has room for.
template <class Struct>
void give(const Struct& all, Struct* to) {
  const uint32_t size = to->struct_size;
  std::memcpy(to, &all, size);
  to->struct_size = size;
}

}  // namespace adamas
