// The stages of one query row one by one: for study, and for a context that lies in parts, in the caches of several
// processes. What parts have to agree on goes through `Merge`, and nothing else does:
//
//   score    max   sigma_ref's largest sigma, the largest unit of a centre, c_max and c_min; where the context ends
//            sum   sigma_ref's exponents; squares of sigmas, for the noise; tokens
//            max   the highest estimate of heads whose scores are made anew (list/rescale.h), where there are any
//   select   max   a score that the budget-th best reaches for certain, and the highest: the window
//            sum   how many tokens have each score of the window
//            behind  tokens with the last selected score: of equal ones the later is selected
//
// All of it is maxima and sums of whole numbers, so codes, scores and selections of a context in parts are those of the
// whole, bit for bit. The noise is a sum of f64, and rounds.
#pragma once

#include "cache/cache.h"
#include "core/merge.h"

namespace adamas {

// As adamas.h says; arguments were checked.
Status score(const Cache& cache, const adamas_score_params& p);
Status select(const adamas_select_params& p);
void attend(const adamas_attend_params& p);

}  // namespace adamas
