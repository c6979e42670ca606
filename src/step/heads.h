// Single query heads between the stages: what each stage is given, and what becomes of its answers. Internal to the step.
#pragma once

#include "step/row.h"

namespace adamas {

// Tokens of a list, or of a selection, at most.
int64_t list_room(const adamas_config& config, const adamas_plan_params& params);

// The candidates of a query head: its marks, and plan.candidates.
void choose(const Row& row, int h, HeadScratch& scratch);
// The list of a KV head, from the candidates of its query heads.
void make_list(const Row& row, int g);
// Weights of the list and the rest for one head, from its exact scores. A head that does not reach min_mass goes on by
// itself: it reads more, attends, and is finished; or it is to read all. Returns stale rows among those that it read by
// itself.
int64_t weigh_list(const Row& row, int h, HeadScratch& scratch);
// What the rest beside hidden rows counts as: what was attended to.
void add_beside_hidden(const Row& row, int h);
// Selects and attends with a fixed budget. Returns stale rows among those that it read.
int64_t attend_budget(const Row& row, int h, HeadScratch& scratch);
// The top tokens by their true scores: every key is read.
void attend_oracle(const Row& row, int h, HeadScratch& scratch);

}  // namespace adamas
