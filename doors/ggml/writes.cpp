#include "writes.h"

#include <cstring>

#include "host.h"

namespace adamas_ggml {
namespace {

template <class Byte>
Byte* at(Byte* data, const ggml_tensor* t, int64_t i, int64_t b, int64_t c) {
  return data + static_cast<size_t>(i) * t->nb[1] + static_cast<size_t>(b) * t->nb[2] + static_cast<size_t>(c) * t->nb[3];
}

}  // namespace

int64_t index_at(const ggml_tensor* indices, int64_t i, int64_t b, int64_t c) {
  const auto* bytes =
      at(static_cast<const char*>(indices->data), indices, b, c, 0) + static_cast<size_t>(i) * indices->nb[0];
  if (indices->type == GGML_TYPE_I32) {
    int32_t index;
    std::memcpy(&index, bytes, sizeof index);
    return index;
  }
  int64_t index;
  std::memcpy(&index, bytes, sizeof index);
  return index;
}

std::string store_rows(const Write& w) {
  const int64_t count = w.indices->ne[0];
  for (int64_t c = 0; c < w.indices->ne[2]; ++c)
    for (int64_t b = 0; b < w.indices->ne[1]; ++b)
      for (int64_t i = 0; i < count; ++i)
        if (const int64_t to = index_at(w.indices, i, b, c); to < 0 || to >= w.out->ne[1])
          return "row " + std::to_string(to) + " of " + std::to_string(w.out->ne[1]);

  const ggml_from_float_t store = store_function(w.out->type);
  for (int64_t c = 0; c < w.rows->ne[3]; ++c)
    for (int64_t b = 0; b < w.rows->ne[2]; ++b)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t to = index_at(w.indices, i, b % w.indices->ne[1], c % w.indices->ne[2]);
        store(reinterpret_cast<const float*>(at(static_cast<const char*>(w.rows->data), w.rows, i, b, c)),
              at(static_cast<char*>(w.out->data), w.out, to, b, c), w.out->ne[0]);
      }
  return "";
}

}  // namespace adamas_ggml
