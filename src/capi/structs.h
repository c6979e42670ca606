// Structs that grow. A caller that was built against an older header gives a smaller one, whose struct_size says so: fields
// that it does not know take their defaults, and nothing is written behind what it has. A new field goes to the end, and
// begins where the struct ended before (never in its padding, which an older caller leaves unset).
#pragma once

#include <cstddef>
#include <cstring>
#include <string>

#include "adamas/adamas.h"
#include "core/config.h"
#include "core/status.h"

namespace adamas {

// The first field that a caller may lack, and what the fields hold that one lacks.
template <class Struct>
struct Growing;
template <>
struct Growing<adamas_config> {
  static constexpr const char* name = "adamas_config";
  static constexpr size_t least = offsetof(adamas_config, share);
  static adamas_config defaults() { return default_config(); }
};
template <>
struct Growing<adamas_cache_params> {
  static constexpr const char* name = "adamas_cache_params";
  static constexpr size_t least = offsetof(adamas_cache_params, device);
  static adamas_cache_params defaults() { return {}; }
};
template <>
struct Growing<adamas_plan_params> {
  static constexpr const char* name = "adamas_plan_params";
  static constexpr size_t least = sizeof(adamas_plan_params);
  static adamas_plan_params defaults() { return {}; }
};
template <>
struct Growing<adamas_step_params> {
  static constexpr const char* name = "adamas_step_params";
  static constexpr size_t least = offsetof(adamas_step_params, slopes);
  static adamas_step_params defaults() { return {}; }
};
template <>
struct Growing<adamas_step_stats> {
  static constexpr const char* name = "adamas_step_stats";
  static constexpr size_t least = offsetof(adamas_step_stats, tokens_visible);
  static adamas_step_stats defaults() { return {}; }
};
template <>
struct Growing<adamas_step_times> {
  static constexpr const char* name = "adamas_step_times";
  static constexpr size_t least = offsetof(adamas_step_times, look);
  static adamas_step_times defaults() { return {}; }
};

template <class Struct>
Status check_size(const Struct* given) {
  using Of = Growing<Struct>;
  if (given == nullptr) return invalid(std::string(Of::name) + " is NULL");
  if (given->struct_size < Of::least || given->struct_size > sizeof(Struct))
    return invalid(std::string(Of::name) + ".struct_size is " + std::to_string(given->struct_size) + "; it is sizeof(" +
                   Of::name + "), and this library knows " + std::to_string(Of::least) + " to " +
                   std::to_string(sizeof(Struct)) + " bytes of it");
  return {};
}

// What the caller gave, and defaults. given: of a right size.
template <class Struct>
Struct whole(const Struct* given) {
  Struct all = Growing<Struct>::defaults();
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
