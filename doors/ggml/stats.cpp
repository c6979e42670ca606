#include "stats.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "host.h"
#include "settings.h"

namespace adamas_ggml {
namespace {

struct Totals {
  std::mutex mutex;
  std::array<int64_t, static_cast<size_t>(Reason::count)> left{};
  int64_t steps = 0, sparse_rows = 0, dense_rows = 0, blocks_encoded = 0, stale_rows = 0, forgotten = 0;
  int64_t rotated_keys = 0;                                     // steps whose keys the engine had rotated
  double tokens_selected = 0, tokens_visible = 0, seconds = 0;  // tokens of one query head, over the sparse rows
  struct Heads {                                                // query heads of sparse rows
    int64_t sparse = 0, guarded = 0, widened = 0;
    double mass = 0;
    void add(const Heads& other) {
      sparse += other.sparse;
      guarded += other.guarded;
      widened += other.widened;
      mass += other.mass;
    }
  };
  std::map<int32_t, Heads> heads;  // by layer
};
Totals& totals() {
  static Totals* const t = new Totals;  // outlives the exit handler
  return *t;
}

double percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

// What a selection left out, layer by layer: the mass that it holds, and the heads that were given more.
void print_layers(FILE* out, const Totals& t) {
  std::fprintf(out, "  %5s %12s %14s %14s\n", "layer", "mass", "too noisy", "widened");
  for (const auto& [layer, h] : t.heads)
    std::fprintf(out, "  %5d %11.1f%% %13.1f%% %13.1f%%\n", layer, percent(h.mass, static_cast<double>(h.sparse)),
                 percent(h.guarded, h.sparse), percent(h.widened, h.sparse));
  std::fprintf(out,
               "  mass: share of the softmax in the tokens read in full, estimated; too noisy: read densely "
               "(ADAMAS_MAX_NOISE); widened:\n"
               "  more tokens or dense (ADAMAS_MIN_MASS); all of a layer's query heads of sparse rows\n");
}

void print() {
  Totals& t = totals();
  const std::lock_guard lock(t.mutex);
  Totals::Heads heads;
  for (const auto& [layer, of_layer] : t.heads) heads.add(of_layer);
  char policy[32] = "", estimator[32] = "", budget[32] = "";
  adamas_config_get(&config(), "policy", policy, sizeof policy);
  adamas_config_get(&config(), "estimator", estimator, sizeof estimator);
  adamas_config_get(&config(), "budget", budget, sizeof budget);
  FILE* out = stderr;
  std::fprintf(out, "\nadamas: policy %s, estimator %s, budget %s, %s\n", policy, estimator, budget, adamas_isa_in_use());
  std::fprintf(out, "  %-34s %12lld\n", "attention steps (one a layer)", static_cast<long long>(t.steps));
  std::fprintf(out, "  %-34s %12lld\n", "query rows, sparse", static_cast<long long>(t.sparse_rows));
  std::fprintf(out, "  %-34s %12lld   of prompts, or within the budget or below ADAMAS_MIN_CONTEXT\n",
               "query rows, dense here", static_cast<long long>(t.dense_rows));
  if (t.sparse_rows > 0)
    std::fprintf(out, "  %-34s %12.1f   of %.1f (%.2f%%)\n", "tokens read in full, per head",
                 t.tokens_selected / t.sparse_rows, t.tokens_visible / t.sparse_rows,
                 100 * t.tokens_selected / t.tokens_visible);
  std::fprintf(out, "  %-34s %12lld\n", "blocks encoded", static_cast<long long>(t.blocks_encoded));
  std::fprintf(out, "  %-34s %12lld   %lld caches encoded anew after a change\n", "stale rows found",
               static_cast<long long>(t.stale_rows), static_cast<long long>(t.forgotten));
  if (t.rotated_keys > 0)
    std::fprintf(out, "  %-34s %12lld   coded as the engine rotated them\n", "steps of rotated keys",
                 static_cast<long long>(t.rotated_keys));
  std::fprintf(out, "  %-34s %12.3f\n", "seconds in this back end", t.seconds);
  if (heads.sparse > 0 && heads.mass == heads.mass) print_layers(out, t);  // NaN: the policy estimates nothing
  for (size_t i = 0; i < t.left.size(); ++i)
    if (t.left[i] > 0)
      std::fprintf(out, "  left to the engine, %lld nodes of graphs built: %s\n", static_cast<long long>(t.left[i]),
                   sentence(static_cast<Reason>(i)));
  std::fprintf(out,
               "adamas: stats {\"steps\":%lld,\"sparse_rows\":%lld,\"dense_rows\":%lld,\"tokens_selected\":%.0f,"
               "\"tokens_visible\":%.0f,\"blocks_encoded\":%lld,\"stale_rows\":%lld,\"seconds\":%.6f,\"heads_sparse\":%lld,"
               "\"heads_guarded\":%lld,"
               "\"heads_widened\":%lld,\"rotated_keys\":%lld}\n",
               static_cast<long long>(t.steps), static_cast<long long>(t.sparse_rows), static_cast<long long>(t.dense_rows),
               t.tokens_selected, t.tokens_visible, static_cast<long long>(t.blocks_encoded),
               static_cast<long long>(t.stale_rows), t.seconds, static_cast<long long>(heads.sparse),
               static_cast<long long>(heads.guarded), static_cast<long long>(heads.widened),
               static_cast<long long>(t.rotated_keys));
  std::fflush(out);
}

}  // namespace

void note_left(Reason reason) {
  Totals& t = totals();
  bool first;
  {
    const std::lock_guard lock(t.mutex);
    first = t.left[static_cast<size_t>(reason)]++ == 0;
  }
  if (first) say(surprising(reason) ? GGML_LOG_LEVEL_WARN : GGML_LOG_LEVEL_INFO, sentence(reason));
}

void note_step(const adamas_step_stats& step, int32_t layer, int32_t q_heads, int64_t rotated) {
  Totals& t = totals();
  const std::lock_guard lock(t.mutex);
  t.steps += 1;
  t.sparse_rows += step.rows_sparse;
  t.dense_rows += step.rows_dense;
  t.blocks_encoded += step.blocks_encoded;
  t.stale_rows += step.rows_stale;
  t.rotated_keys += (rotated & ADAMAS_ROTATED_KEYS) != 0;
  if (step.rows_sparse > 0) {
    t.heads[layer].add({step.heads_sparse, step.heads_guarded, step.heads_widened, step.mass});
    t.tokens_selected += static_cast<double>(step.tokens_selected) / q_heads;
    t.tokens_visible += static_cast<double>(step.tokens_visible) / q_heads;
  }
}

void note_forgotten() {
  Totals& t = totals();
  const std::lock_guard lock(t.mutex);
  t.forgotten += 1;
}

void note_seconds(double seconds) {
  Totals& t = totals();
  const std::lock_guard lock(t.mutex);
  t.seconds += seconds;
}

void print_stats_at_exit() {
  totals();
  static const int registered = std::atexit(print);  // once
  (void)registered;
}

}  // namespace adamas_ggml
