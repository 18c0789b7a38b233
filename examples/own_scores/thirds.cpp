// causal_attention with scores and a mask of one's own: a query sees every third event back, and its scores
// fall with the distance. thirds.py compiles it.
#include "attention/cpu/launch.h"
#include "causal_attention/causal_attention.h"
#include "causal_attention/softmax_rule.h"
#include "common/cpu/stored_type.h"

namespace argus::causal_attention {
template <class A>
struct Thirds : SoftmaxRule<A> {
  // Scores [keys, queries] of a tile, under the op's own mask, not yet multiplied by `factor`.
  static void modify(A* scores, const Block& block, const KeyTile& tile, A factor) {
    for (int64_t j = 0; j < tile.size(); ++j)
      for (int64_t c = 0; c < block.columns; ++c) {
        const int64_t back = block.place + c - (tile.begin + j);
        A& score = scores[j * kQueries + c];
        score = back % 3 == 0 ? score * factor - A(0.01) * A(back) : SoftmaxRule<A>::kHidden;
      }
  }
  void weigh(A* scores, const Block& block, const KeyTile& tile, A factor) {
    modify(scores, block, tile, factor);
    SoftmaxRule<A>::weigh(scores, block, tile, A{1});
  }
  void differentiate(A* scores, A* d_weights, const Block& block, const KeyTile& tile, A factor) {
    modify(scores, block, tile, factor);
    SoftmaxRule<A>::differentiate(scores, d_weights, block, tile, A{1});
  }
};
void forward_cpu(const attention::Forward& call) {
  with_stored_type(call.given.dtype,
                   [&]<class T>() { attention::forward<T>(call, Thirds<Arithmetic<T>>()); });
}
void backward_cpu(const attention::Backward& call) {
  with_stored_type(call.given.dtype,
                   [&]<class T>() { attention::backward<T>(call, Thirds<Arithmetic<T>>()); });
}
}  // namespace argus::causal_attention
