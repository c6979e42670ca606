// Nodes given to the back end directly, no model needed: graphs TOOLS LIBRARY compare|refuse|alone.
//   compare  attention and writes equal those of the engine's CPU back end, for every option that we claim
//   refuse   nodes of wrong types, shapes, strides or sources give GGML_STATUS_FAILED, and nothing worse
//   alone    the same where no CPU back end is registered, whose functions store rows
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "ggml_library.h"

namespace {

struct Shape {
  const char* name;
  int64_t head_dim, q_heads, kv_heads, rows = 1, n_kv = 256, capacity = 320, streams = 1, first_stream = 0, batch = 1;
  ggml_type k_type = GGML_TYPE_F16, v_type = GGML_TYPE_F16;
  float max_bias = 0, softcap = 0;
  bool sinks = false, masked = true, hidden_row = false;
};

// A cache with rows in it, one node that writes rows of K, one that writes rows of V, one that attends.
struct Case {
  const Ggml& g;
  ggml_context* context;
  ggml_backend_buffer_t buffer;
  ggml_tensor *k_root, *v_root, *q, *mask = nullptr, *sinks = nullptr, *k_rows, *v_rows, *indices;
  ggml_tensor *write_k, *write_v, *attention;
  ggml_cgraph* graph;

  Case(const Ggml& g, const Shape& s, uint32_t seed) : g(g) {
    context = g.init({64 * g.overhead() + g.graph_overhead(), nullptr, true});
    k_root = g.tensor(context, s.k_type, s.head_dim * s.kv_heads, s.capacity, s.streams, 1);
    v_root = g.tensor(context, s.v_type, s.head_dim * s.kv_heads, s.capacity, s.streams, 1);
    g.set_name(k_root, "cache_k_l0");
    g.set_name(v_root, "cache_v_l0");
    q = g.tensor(context, GGML_TYPE_F32, s.head_dim, s.q_heads, s.rows, s.batch);
    const int64_t written = s.batch * 3;
    k_rows = g.tensor(context, GGML_TYPE_F32, s.head_dim * s.kv_heads, written, 1, 1);
    v_rows = g.tensor(context, GGML_TYPE_F32, s.head_dim * s.kv_heads, written, 1, 1);
    indices = g.tensor(context, s.rows == 1 ? GGML_TYPE_I64 : GGML_TYPE_I32, written, 1, 1, 1);
    if (s.masked) mask = g.tensor(context, GGML_TYPE_F16, s.n_kv, (s.rows + 31) / 32 * 32, 1, s.batch);
    if (s.sinks) sinks = g.tensor(context, GGML_TYPE_F32, s.q_heads, 1, 1, 1);

    write_k = g.set_rows(context, g.reshape(context, k_root, k_root->ne[0], s.capacity * s.streams), k_rows, indices);
    write_v = g.set_rows(context, g.reshape(context, v_root, v_root->ne[0], s.capacity * s.streams), v_rows, indices);
    const auto in_view = [&](ggml_tensor* root) {
      ggml_tensor* view = g.view(context, root, s.head_dim, s.kv_heads, s.n_kv, s.batch, g.row_size(root->type, s.head_dim),
                                 root->nb[1], root->nb[2], root->nb[2] * static_cast<size_t>(s.first_stream));
      return g.permute(context, view, 0, 2, 1, 3);
    };
    attention = g.attention(context, g.permute(context, q, 0, 2, 1, 3), in_view(k_root), in_view(v_root), mask,
                            1.0f / std::sqrt(static_cast<float>(s.head_dim)), s.max_bias, s.softcap);
    if (sinks) g.add_sinks(attention, sinks);
    graph = g.new_graph(context);
    for (ggml_tensor* node : {write_k, write_v, attention}) g.expand(graph, node);
    buffer = g.allocate(context, g.cpu_buffer_type());

    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](ggml_tensor* t) {
      int64_t count = 1;
      for (int64_t ne : t->ne) count *= ne;
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = normal(random);
      std::vector<unsigned char> bytes(g.nbytes(t));
      g.convert(t->type, values.data(), bytes.data(), 0, count / t->ne[0], t->ne[0], nullptr);
      g.set(t, bytes.data(), 0, bytes.size());
    };
    for (ggml_tensor* t : {k_root, v_root, q, k_rows, v_rows}) fill(t);
    if (sinks) fill(sinks);
    // Values that are hard to round, in a row that the mask hides: the engine adds values up in f16, and 65504 would not
    // fit.
    float* hard = static_cast<float*>(v_rows->data) + 2 * v_rows->ne[0];
    if (mask)
      for (float value :
           {65504.0f, 65520.0f, -0.0f, 1e-8f, 5.9604645e-8f, 2.9802322e-8f, 6.1e-5f, 1.00048828125f, 1.00146484375f})
        *hard++ = value;
    for (int64_t i = 0; i < written; ++i) {
      const int64_t to = (s.first_stream + i / 3) * s.capacity + s.n_kv - 3 + i % 3;
      const auto narrow = static_cast<int32_t>(to);
      if (indices->type == GGML_TYPE_I64)
        static_cast<int64_t*>(indices->data)[i] = to;
      else
        static_cast<int32_t*>(indices->data)[i] = narrow;
    }
    if (mask) {
      auto* values = static_cast<uint16_t*>(mask->data);
      for (int64_t i = 0; i < mask->ne[1] * mask->ne[3]; ++i)
        for (int64_t t = 0; t < s.n_kv; ++t) {
          const bool hide = (s.hidden_row && i == 0) || t > s.n_kv - 2 - i % 4 || t % 7 == 3;
          const float distance = s.max_bias > 0 ? static_cast<float>(t - s.n_kv) : 0.0f;
          values[i * s.n_kv + t] = g.f16_bits(hide ? -std::numeric_limits<float>::infinity() : distance);
        }
    }
  }
  Case(const Case&) = delete;
  ~Case() {
    g.free_buffer(buffer);
    g.free(context);
  }
};

void compare(const Ggml& g, ggml_backend_t ours, ggml_backend_t theirs) {
  std::vector<Shape> shapes;
  for (int64_t head_dim : {64, 80, 96, 112, 128, 192, 256})
    shapes.push_back({.name = "head_dim", .head_dim = head_dim, .q_heads = 6, .kv_heads = 2});
  shapes.push_back(
      {.name = "bf16", .head_dim = 64, .q_heads = 4, .kv_heads = 4, .k_type = GGML_TYPE_BF16, .v_type = GGML_TYPE_BF16});
  shapes.push_back(
      {.name = "f32", .head_dim = 64, .q_heads = 4, .kv_heads = 1, .k_type = GGML_TYPE_F32, .v_type = GGML_TYPE_F32});
  const ggml_type quantised[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                 GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL};
  for (ggml_type type : quantised) {
    shapes.push_back(
        {.name = g.type_name(type), .head_dim = 96, .q_heads = 6, .kv_heads = 2, .rows = 2, .k_type = type, .v_type = type});
    shapes.push_back({.name = "values", .head_dim = 64, .q_heads = 4, .kv_heads = 2, .v_type = type});
  }
  shapes.push_back({.name = "5 rows", .head_dim = 64, .q_heads = 9, .kv_heads = 3, .rows = 5});
  shapes.push_back({.name = "3 streams of 5, 4 rows",
                    .head_dim = 64,
                    .q_heads = 6,
                    .kv_heads = 2,
                    .rows = 4,
                    .streams = 5,
                    .first_stream = 1,
                    .batch = 3});
  shapes.push_back({.name = "last stream", .head_dim = 128, .q_heads = 4, .kv_heads = 2, .streams = 3, .first_stream = 2});
  shapes.push_back({.name = "ALiBi, 12 heads", .head_dim = 64, .q_heads = 12, .kv_heads = 12, .max_bias = 8});
  shapes.push_back({.name = "softcap", .head_dim = 64, .q_heads = 4, .kv_heads = 2, .softcap = 5});
  shapes.push_back({.name = "sinks", .head_dim = 64, .q_heads = 8, .kv_heads = 2, .rows = 2, .sinks = true});
  shapes.push_back({.name = "no mask", .head_dim = 64, .q_heads = 4, .kv_heads = 2, .masked = false});
  shapes.push_back(
      {.name = "a row that sees nothing", .head_dim = 64, .q_heads = 4, .kv_heads = 2, .rows = 3, .hidden_row = true});
  shapes.push_back(
      {.name = "length 200", .head_dim = 64, .q_heads = 4, .kv_heads = 2, .rows = 8, .n_kv = 200, .capacity = 200});

  for (const Shape& s : shapes) {
    Case mine(g, s, 7), reference(g, s, 7);
    bool ran = true;
    for (int repeat = 0; repeat < 8; ++repeat) ran &= g.compute(ours, mine.graph) == GGML_STATUS_SUCCESS;
    ran &= g.compute(theirs, reference.graph) == GGML_STATUS_SUCCESS;
    const bool stored = std::memcmp(mine.k_root->data, reference.k_root->data, g.nbytes(mine.k_root)) == 0 &&
                        std::memcmp(mine.v_root->data, reference.v_root->data, g.nbytes(mine.v_root)) == 0;
    // The engine adds values up in f16 where the cache is f16; we do not.
    const auto *x = static_cast<const float*>(mine.attention->data),
               *y = static_cast<const float*>(reference.attention->data);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < g.nbytes(mine.attention) / 4; ++i) {
      worst = std::max(worst, static_cast<double>(std::abs(x[i] - y[i])));
      largest = std::max(largest, static_cast<double>(std::abs(y[i])));
      if (!std::isfinite(x[i])) worst = INFINITY;
    }
    char line[160];
    std::snprintf(line, sizeof line, "%s %lld: rows stored %s, attention differs by %.2g of %.2g", s.name,
                  static_cast<long long>(s.head_dim), stored ? "bit for bit" : "DIFFERENTLY", worst, largest);
    check(ran && stored && worst <= 4e-3 * std::max(1.0, largest), line);
  }
}

void refuse(const Ggml& g, ggml_backend_t ours) {
  const Shape shape{.name = "", .head_dim = 64, .q_heads = 4, .kv_heads = 2, .rows = 2, .streams = 2, .batch = 2};
  struct Fault {
    const char* name;
    std::function<void(Case&)> make;
  };
  const std::vector<Fault> faults{
      {"q missing", [](Case& c) { c.attention->src[0] = nullptr; }},
      {"K missing", [](Case& c) { c.attention->src[1] = nullptr; }},
      {"V missing", [](Case& c) { c.attention->src[2] = nullptr; }},
      {"q f16", [](Case& c) { c.attention->src[0]->type = GGML_TYPE_F16; }},
      {"K q8_0", [](Case& c) { c.attention->src[1]->type = GGML_TYPE_Q8_0; }},
      {"a q2_0 cache", [](Case& c) { c.k_root->type = c.attention->src[1]->type = GGML_TYPE_Q2_0; }},
      {"V of another head_dim", [](Case& c) { c.attention->src[2]->ne[0] = 32; }},
      {"head_dim 65",
       [](Case& c) {
         for (int i = 0; i < 3; ++i) c.attention->src[i]->ne[0] = 65;
       }},
      {"K without data", [](Case& c) { c.attention->src[1]->data = nullptr; }},
      {"K elsewhere", [](Case& c) { c.attention->src[1]->data = static_cast<char*>(c.attention->src[1]->data) + 2; }},
      {"K longer than its cache", [](Case& c) { c.attention->src[1]->ne[1] = c.attention->src[2]->ne[1] = 1 << 20; }},
      {"K of 2^62 rows", [](Case& c) { c.attention->src[1]->ne[1] = c.attention->src[2]->ne[1] = int64_t{1} << 62; }},
      {"K of -1 rows", [](Case& c) { c.attention->src[1]->ne[1] = c.attention->src[2]->ne[1] = -1; }},
      {"V with a stride out of its buffer", [](Case& c) { c.attention->src[2]->nb[1] = size_t{1} << 40; }},
      {"V with a stride that wraps", [](Case& c) { c.attention->src[2]->nb[2] = SIZE_MAX / 2; }},
      {"q with a stride out of its buffer", [](Case& c) { c.attention->src[0]->nb[2] = size_t{1} << 30; }},
      {"K transposed", [](Case& c) { std::swap(c.attention->src[1]->nb[0], c.attention->src[1]->nb[1]); }},
      {"3 KV heads for 4", [](Case& c) { c.attention->src[1]->ne[2] = c.attention->src[2]->ne[2] = 3; }},
      {"more streams than there are",
       [](Case& c) {
         for (int i = 0; i < 4; ++i) c.attention->src[i]->ne[3] = 3;
         c.attention->ne[3] = 3;
       }},
      {"K no view of a cache", [](Case& c) { c.attention->src[1]->view_src = nullptr; }},
      {"mask f32", [](Case& c) { c.mask->type = GGML_TYPE_F32; }},
      {"mask too narrow", [](Case& c) { c.mask->ne[0] = 7; }},
      {"mask too low", [](Case& c) { c.mask->ne[1] = 1; }},
      {"mask without data", [](Case& c) { c.mask->data = nullptr; }},
      {"sinks of another length", [](Case& c) { c.attention->src[4] = c.indices; }},
      {"scale NaN",
       [](Case& c) {
         const float bad = NAN;
         std::memcpy(c.attention->op_params, &bad, 4);
       }},
      {"output of another shape", [](Case& c) { c.attention->ne[1] = 3; }},
      {"output that is not packed", [](Case& c) { c.attention->nb[2] += 4; }},
      {"rows missing", [](Case& c) { c.write_k->src[0] = nullptr; }},
      {"indices missing", [](Case& c) { c.write_k->src[1] = nullptr; }},
      {"indices f32", [](Case& c) { c.indices->type = GGML_TYPE_F32; }},
      {"an index below 0", [](Case& c) { static_cast<int32_t*>(c.indices->data)[1] = -1; }},
      {"an index past the cache", [](Case& c) { static_cast<int32_t*>(c.indices->data)[1] = 640; }},
      {"more indices than memory", [](Case& c) { c.indices->ne[0] = c.k_rows->ne[1] = 1 << 28; }},
      {"rows narrower than the cache", [](Case& c) { c.k_rows->ne[0] = 64; }},
      {"an operation that is not ours", [](Case& c) { c.write_v->op = GGML_OP_ADD; }},
      {"an operation that does not exist", [](Case& c) { c.write_v->op = static_cast<ggml_op>(9999); }},
  };
  for (const Fault& fault : faults) {
    Case c(g, shape, 3);
    for (int i = 0; i < GGML_MAX_SRC; ++i)  // a view's own copy, so that the fault stays in one place
      if (c.attention->src[i]) c.attention->src[i]->op = GGML_OP_NONE;
    fault.make(c);
    check(g.compute(ours, c.graph) == GGML_STATUS_FAILED, std::string("refused: ") + fault.name);
  }
  Case good(g, shape, 3);
  check(g.compute(ours, good.graph) == GGML_STATUS_SUCCESS, "and a good graph still runs");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  const std::string folder = arguments[1];
  const Ggml g(folder);
  const Library cpu(folder + "/libggml-cpu.so"), registry(folder + "/libggml.so"), backend(arguments[2]);
  SYMBOL(g.base, ggml_log_set)([](ggml_log_level, const char*, void*) {}, nullptr);
  const bool alone = std::strcmp(arguments[3], "alone") == 0;
  if (!alone)
    SYMBOL(registry, ggml_backend_load)((folder + "/libggml-cpu.so").c_str());  // as every engine does before it loads us
  ggml_backend_t ours = start(g, backend), theirs = start(g, cpu);
  if (!ours || !theirs) return 1;
  if (std::strcmp(arguments[3], "compare") == 0)
    compare(g, ours, theirs);
  else if (alone)
    check(g.compute(ours, Case(g, {.name = "", .head_dim = 64, .q_heads = 4, .kv_heads = 2}, 3).graph) == GGML_STATUS_FAILED,
          "nothing is computed without the engine's own way to store rows");
  else
    refuse(g, ours);
  ours->iface.free(ours);
  theirs->iface.free(theirs);
  return failures == 0 ? 0 : 1;
}
