/* Attention of one query row over 4,096 tokens, of which each query head reads 128. */
#include <adamas/adamas.h>
#include <stdio.h>
#include <stdlib.h>

enum { Q_HEADS = 8, KV_HEADS = 2, HEAD_DIM = 64, TOKENS = 4096 };

static float k[KV_HEADS][TOKENS][HEAD_DIM], v[KV_HEADS][TOKENS][HEAD_DIM]; /* your KV cache: it stays yours */
static float q[Q_HEADS][HEAD_DIM], out[Q_HEADS][HEAD_DIM];

static void fill(float* values, size_t size) {
  for (size_t i = 0; i < size / sizeof *values; i++) values[i] = (float)rand() / (float)RAND_MAX - 0.5f;
}

static void must(adamas_status status) {
  if (status == ADAMAS_OK) return;
  fprintf(stderr, "%s: %s\n", adamas_status_name(status), adamas_last_error());
  exit(1);
}

int main(void) {
  fill(k[0][0], sizeof k);
  fill(v[0][0], sizeof v);
  fill(q[0], sizeof q);

  adamas_config config;
  must(adamas_config_init(&config));
  config.budget = 128;

  adamas_cache* cache;
  must(adamas_cache_create(&config,
                           &(adamas_cache_params){.struct_size = sizeof(adamas_cache_params),
                                                  .kv_heads = KV_HEADS,
                                                  .head_dim = HEAD_DIM,
                                                  .sequences = 1,
                                                  .capacity = TOKENS},
                           &cache));
  adamas_plan* plan;
  must(adamas_plan_create(&config,
                          &(adamas_plan_params){.struct_size = sizeof(adamas_plan_params),
                                                .q_heads = Q_HEADS,
                                                .kv_heads = KV_HEADS,
                                                .head_dim = HEAD_DIM,
                                                .max_tokens = TOKENS,
                                                .max_threads = 1},
                          &plan));

  const adamas_rows keys = {k, ADAMAS_F32, sizeof k, sizeof k[0], sizeof k[0][0], NULL, 0};
  const adamas_rows values = {v, ADAMAS_F32, sizeof v, sizeof v[0], sizeof v[0][0], NULL, 0};
  must(adamas_append(cache, 0, 0, TOKENS, &keys, &values));

  adamas_step_stats stats = {.struct_size = sizeof stats};
  must(adamas_step(plan, cache,
                   &(adamas_step_params){.struct_size = sizeof(adamas_step_params),
                                         .threads = 1,
                                         .batch = 1,
                                         .rows = 1,
                                         .k = keys,
                                         .v = values,
                                         .q = q,
                                         .q_dtype = ADAMAS_F32,
                                         .q_stride_head = sizeof q[0],
                                         .out = out[0],
                                         .out_stride_head = sizeof out[0],
                                         .stats = &stats}));

  printf("each query head attended to %lld of %d tokens; out[0] = %f\n", (long long)(stats.tokens_selected / Q_HEADS),
         TOKENS, out[0][0]);
  adamas_plan_destroy(plan);
  adamas_cache_destroy(cache);
  return 0;
}
