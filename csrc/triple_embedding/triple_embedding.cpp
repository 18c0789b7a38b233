// Registration of argus_native::triple_embedding and its backward. Compiled into both op libraries.
#include <torch/csrc/stable/library.h>

#ifndef ARGUS_CUDA_LIBRARY
#include "triple_embedding/on_cpu.h"
#else
#include "triple_embedding/on_cuda.h"
#endif

#ifndef ARGUS_CUDA_LIBRARY

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "triple_embedding(Tensor ids, Tensor[] tables, int[] columns, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "triple_embedding_backward(Tensor gradient, Tensor ids, Tensor[] tables, int[] columns, Tensor weight, "
      "Tensor(a!)[] d_tables, bool sparse, bool needs_tables, bool needs_weight, bool needs_bias) -> "
      "Tensor[]");
  m.def(
      "triple_embedding_backward_and_step(Tensor gradient, Tensor ids, Tensor(a!)[] tables, int[] columns, "
      "Tensor weight, Tensor(b!)[] states, float[] lr, float[] eps, float[] weight_decay, bool needs_weight, "
      "bool needs_bias) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("triple_embedding", TORCH_BOX(&argus::triple_embedding::forward_on_cpu));
  m.impl("triple_embedding_backward", TORCH_BOX(&argus::triple_embedding::backward_on_cpu));
  m.impl("triple_embedding_backward_and_step", TORCH_BOX(&argus::triple_embedding::backward_and_step_on_cpu));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("triple_embedding", TORCH_BOX(&argus::triple_embedding::forward_on_cuda));
  m.impl("triple_embedding_backward", TORCH_BOX(&argus::triple_embedding::backward_on_cuda));
}

#endif
