/* A program that was built against an older header (older_header.py), with today's library: it works, and what it does not
 * know is not written. */
#include <adamas/adamas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 3000, HEAD_DIM = 64 };
static float k[TOKENS][HEAD_DIM], v[TOKENS][HEAD_DIM], q[2][HEAD_DIM], out[2][HEAD_DIM];

/* Structs of the caller's, and what lies behind them. */
struct guarded_config {
  adamas_config config;
  unsigned char guard[64];
};
struct guarded_stats {
  adamas_step_stats stats;
  unsigned char guard[64];
};

static void must(adamas_status status) {
  if (status == ADAMAS_OK) return;
  fprintf(stderr, "%s: %s\n", adamas_status_name(status), adamas_last_error());
  exit(1);
}
static void untouched(const unsigned char* guard, const char* what) {
  for (int i = 0; i < 64; i++)
    if (guard[i] != 0xA5) {
      fprintf(stderr, "byte %d behind %s was written\n", i, what);
      exit(1);
    }
}

int main(void) {
  struct guarded_config c;
  struct guarded_stats s;
  memset(&c, 0xA5, sizeof c);
  memset(&s, 0xA5, sizeof s);
  s.stats.struct_size = sizeof s.stats;
  for (int i = 0; i < TOKENS; i++)
    for (int d = 0; d < HEAD_DIM; d++) {
      k[i][d] = (float)((i * 31 + d * 17) % 101) / 101.0f - 0.5f;
      v[i][d] = (float)((i * 13 + d * 7) % 89) / 89.0f - 0.5f;
    }
  for (int d = 0; d < HEAD_DIM; d++) q[0][d] = 3 * k[1234][d], q[1][d] = 3 * k[777][d];

  must(adamas_config_init(&c.config));
  untouched(c.guard, "the config");
  must(adamas_config_set(&c.config, "budget", "64"));
  must(adamas_config_from_environment(&c.config));
  must(adamas_config_check(&c.config));
  untouched(c.guard, "the config");
  if (adamas_config_set(&c.config, "stats", "1") != ADAMAS_UNSUPPORTED)
    return fprintf(stderr, "a setting that the program cannot hold was taken\n"), 1;

  adamas_cache_params cache_params = {0};
  cache_params.struct_size = sizeof cache_params;
  cache_params.kv_heads = cache_params.sequences = 1;
  cache_params.head_dim = HEAD_DIM;
  cache_params.capacity = TOKENS;
  adamas_cache* cache;
  must(adamas_cache_create(&c.config, &cache_params, &cache));
  adamas_plan_params plan_params = {0};
  plan_params.struct_size = sizeof plan_params;
  plan_params.q_heads = 2;
  plan_params.kv_heads = plan_params.max_threads = 1;
  plan_params.head_dim = HEAD_DIM;
  plan_params.max_tokens = TOKENS;
  adamas_plan* plan;
  must(adamas_plan_create(&c.config, &plan_params, &plan));

  const adamas_rows keys = {k, ADAMAS_F32, sizeof k, sizeof k, sizeof k[0], NULL, 0};
  const adamas_rows values = {v, ADAMAS_F32, sizeof v, sizeof v, sizeof v[0], NULL, 0};
  must(adamas_append(cache, 0, 0, TOKENS, &keys, &values));
  adamas_step_params p = {0};
  p.struct_size = sizeof p;
  p.threads = 1;
  p.batch = p.rows = 1;
  p.q = q;
  p.q_stride_head = p.out_stride_head = sizeof q[0];
  p.k = keys;
  p.v = values;
  p.out = out[0];
  p.stats = &s.stats;
  must(adamas_step(plan, cache, &p));
  untouched(s.guard, "the stats");
  if (s.stats.tokens_selected != 2 * 64)
    return fprintf(stderr, "%lld tokens were selected\n", (long long)s.stats.tokens_selected), 1;
  adamas_plan_destroy(plan);
  adamas_cache_destroy(cache);
  printf("a program of an older header ran with version %s\n", adamas_version());
  return 0;
}
