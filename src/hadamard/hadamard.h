// Stage 1. Rotates a row by the orthonormal Walsh-Hadamard matrix.
//
//   y = H x / sqrt(n),  H[i][j] = (-1)^popcount(i & j),  n = the largest power of two that divides head_dim;
//   a row of head_dim = m n is m independent blocks of n.
//
// H H^T = n I, so (Hq / sqrt n) . (Hk / sqrt n) = q . k: the scores stay, while outlier channels are spread over n
// dimensions. The butterfly adds in one fixed order (spans 1, 2, 4, ...), so every instruction set gives the same bits.
#pragma once

namespace adamas {

// row: [head_dim], in place.
void rotate(float* row, int head_dim);

constexpr int rotation_block(int head_dim) { return head_dim & -head_dim; }

}  // namespace adamas
