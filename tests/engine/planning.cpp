// The back end under the engine's scheduler, no model needed: planning TOOLS LIBRARY. Graphs as a context makes them are
// planned and computed. After each, every node is asked about again and again in random order: whatever the scheduler was
// told is said again.
#include <algorithm>
#include <random>
#include <vector>

#include "ggml_library.h"

namespace {

constexpr int64_t head_dim = 64, q_heads = 4, kv_heads = 2, capacity = 1024, layers = 2;

struct Caches {
  const Ggml& g;
  ggml_context* context;
  ggml_tensor *k[layers], *v[layers];
  ggml_backend_buffer_t buffer;

  Caches(const Ggml& g, unsigned char byte) : g(g), context(g.init({2 * layers * g.overhead(), nullptr, true})) {
    for (int layer = 0; layer < layers; ++layer) {
      k[layer] = g.tensor(context, GGML_TYPE_F16, head_dim * kv_heads, capacity, 1, 1);
      v[layer] = g.tensor(context, GGML_TYPE_F16, head_dim * kv_heads, capacity, 1, 1);
      g.set_name(k[layer], ("cache_k_l" + std::to_string(layer)).c_str());
      g.set_name(v[layer], ("cache_v_l" + std::to_string(layer)).c_str());
    }
    buffer = g.allocate(context, g.cpu_buffer_type());
    const std::vector<unsigned char> bytes(g.nbytes(k[0]), byte);
    for (int layer = 0; layer < layers; ++layer)
      for (ggml_tensor* t : {k[layer], v[layer]}) g.set(t, bytes.data(), 0, bytes.size());
  }
  Caches(const Caches&) = delete;
  ~Caches() {
    g.free_buffer(buffer);
    g.free(context);
  }
};

// What a graph does with each layer's cache: rows that it writes, cells that it attends to, whether it turns the keys.
struct Plan {
  const char* name;
  int64_t rows, n_kv;
  bool turn = false;
  bool writes_here, attends_here;  // what is to be ours
  bool computed = true;
};

struct Graph {
  const Ggml& g;
  ggml_context* context;
  ggml_cgraph* graph;
  std::vector<ggml_tensor*> inputs, writes, attentions;

  Graph(const Ggml& g, const Caches& caches, const Plan& plan)
      : g(g), context(g.init({128 * g.overhead() + g.graph_overhead(), nullptr, true})), graph(g.new_graph(context)) {
    for (int layer = 0; layer < layers; ++layer) {
      ggml_tensor *k = caches.k[layer], *v = caches.v[layer];
      if (plan.turn) {
        ggml_tensor* heads =
            g.view(context, k, head_dim, kv_heads, capacity, 1, g.row_size(k->type, head_dim), k->nb[1], k->nb[2], 0);
        g.expand(graph, g.rope_inplace(context, heads, input(GGML_TYPE_I32, capacity, 1, 1), head_dim, 0));
        continue;
      }
      ggml_tensor* indices = input(GGML_TYPE_I64, plan.rows, 1, 1);
      for (ggml_tensor* root : {k, v}) {
        writes.push_back(g.set_rows(context, root, input(GGML_TYPE_F32, root->ne[0], plan.rows, 1), indices));
        g.expand(graph, writes.back());
      }
      if (plan.n_kv == 0) continue;
      const auto in_view = [&](ggml_tensor* root) {
        ggml_tensor* view = g.view(context, root, head_dim, kv_heads, plan.n_kv, 1, g.row_size(root->type, head_dim),
                                   root->nb[1], root->nb[2], 0);
        return g.permute(context, view, 0, 2, 1, 3);
      };
      ggml_tensor* q = g.permute(context, input(GGML_TYPE_F32, head_dim, q_heads, plan.rows), 0, 2, 1, 3);
      attentions.push_back(g.attention(context, q, in_view(k), in_view(v), nullptr, 0.125f, 0, 0));
      g.expand(graph, attentions.back());
    }
  }
  Graph(const Graph&) = delete;
  ~Graph() { g.free(context); }

  // Once the scheduler has given them memory. Rows go where the context ends.
  void fill(const Plan& plan, std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (ggml_tensor* t : inputs) {
      if (t->type == GGML_TYPE_F32)
        for (size_t i = 0; i < g.nbytes(t) / 4; ++i) static_cast<float*>(t->data)[i] = normal(random);
      else if (t->type == GGML_TYPE_I64)
        for (int64_t i = 0; i < t->ne[0]; ++i)
          static_cast<int64_t*>(t->data)[i] = std::max(plan.n_kv, plan.rows) - plan.rows + i;
      else
        std::fill_n(static_cast<int32_t*>(t->data), t->ne[0], 7);
    }
  }

 private:
  ggml_tensor* input(ggml_type type, int64_t a, int64_t b, int64_t c) {
    ggml_tensor* t = g.tensor(context, type, a, b, c, 1);
    g.set_input(t);
    inputs.push_back(t);
    return t;
  }
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = arguments[1];
  const Ggml g(folder);
  const Library cpu(folder + "/libggml-cpu.so"), registry(folder + "/libggml.so"), library(arguments[2]);
  SYMBOL(g.base, ggml_log_set)([](ggml_log_level, const char*, void*) {}, nullptr);
  SYMBOL(registry, ggml_backend_load)((folder + "/libggml-cpu.so").c_str());
  ggml_backend_t ours = start(g, library), theirs = start(g, cpu);
  if (!ours || !theirs) return 1;
  ggml_backend_t backends[] = {ours, theirs};
  ggml_backend_buffer_type_t types[] = {g.cpu_buffer_type(), g.cpu_buffer_type()};
  ggml_backend_sched_t scheduler = g.sched_new(backends, types, 2, 256, false, false);
  const Caches empty(g, 0), full(g, 0x22);  // as at start, and as if a state had been restored that no graph wrote
  std::mt19937 random(5);

  // ADAMAS_MIN_CONTEXT=256
  const Plan plans[] = {
      {.name = "at start: a prompt",
       .rows = 64,
       .n_kv = capacity,
       .writes_here = false,
       .attends_here = false,
       .computed = false},
      {.name = "at start: a token",
       .rows = 1,
       .n_kv = capacity,
       .writes_here = false,
       .attends_here = false,
       .computed = false},
      {.name = "a prompt", .rows = 512, .n_kv = 512, .writes_here = true, .attends_here = true},
      {.name = "a token", .rows = 1, .n_kv = 768, .writes_here = true, .attends_here = true},
      {.name = "another", .rows = 1, .n_kv = 1024, .writes_here = true, .attends_here = true},
      {.name = "a short context after a long one", .rows = 1, .n_kv = 128, .writes_here = true, .attends_here = false},
      {.name = "a long one again", .rows = 1, .n_kv = 1024, .writes_here = true, .attends_here = true},
      {.name = "a short one", .rows = 1, .n_kv = 128, .writes_here = true, .attends_here = false},
      {.name = "a short one after a short one", .rows = 1, .n_kv = 128, .writes_here = false, .attends_here = false},
      {.name = "a long one after that", .rows = 1, .n_kv = 1024, .writes_here = true, .attends_here = true},
      {.name = "rows written and not read", .rows = 2, .n_kv = 0, .writes_here = true, .attends_here = false},
      {.name = "read again", .rows = 1, .n_kv = 1024, .writes_here = true, .attends_here = true},
      {.name = "keys turned in place", .rows = 0, .n_kv = 0, .turn = true, .writes_here = false, .attends_here = false},
      {.name = "a token after that", .rows = 1, .n_kv = 1024, .writes_here = true, .attends_here = true},
  };
  const auto run = [&](const Caches& caches, const Plan& plan) {
    Graph graph(g, caches, plan);
    g.sched_reset(scheduler);
    bool good = g.sched_alloc(scheduler, graph.graph);
    for (int repeat = 0; repeat < 3; ++repeat) {  // an engine computes a graph many times; here it is asked about in between
      if (plan.computed) {
        graph.fill(plan, random);
        good &= g.sched_compute(scheduler, graph.graph) == GGML_STATUS_SUCCESS;
      }
      int other_answers = 0;
      for (int question = 0; question < 300; ++question) {
        ggml_tensor* node = g.node(graph.graph, static_cast<int>(random() % static_cast<uint32_t>(g.n_nodes(graph.graph))));
        const bool answer = g.supports(ours, node);
        if (node->op == GGML_OP_SET_ROWS || node->op == GGML_OP_FLASH_ATTN_EXT || node->op == GGML_OP_ROPE)
          other_answers += answer != (g.backend_of(scheduler, node) == ours);  // a view lies where its source does
      }
      if (other_answers) std::printf("        %d of 300 answers are not what the scheduler was told\n", other_answers);
      good &= other_answers == 0;
    }
    for (ggml_tensor* node : graph.writes) good &= (g.backend_of(scheduler, node) == ours) == plan.writes_here;
    for (ggml_tensor* node : graph.attentions) good &= (g.backend_of(scheduler, node) == ours) == plan.attends_here;
    check(good, std::string(plan.name) + ": rows written " + (plan.writes_here ? "here" : "by the engine") + ", attention " +
                    (plan.attends_here ? "here" : "by the engine") + ", and asked again the same");
  };
  for (const Plan& plan : plans) run(empty, plan);
  run(full,
      {.name = "the first graph over a full cache", .rows = 1, .n_kv = 1024, .writes_here = false, .attends_here = false});
  run(full, {.name = "the second", .rows = 1, .n_kv = 1024, .writes_here = true, .attends_here = true});
  g.sched_free(scheduler);
  ours->iface.free(ours);
  theirs->iface.free(theirs);
  return failures == 0 ? 0 : 1;
}
