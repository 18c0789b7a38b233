// Maps the dtypes of a problem to the types of a pass.
#pragma once

#include "common/cpu/element.h"
#include "common/cpu/matmul.h"
#include "triple_embedding/triple_embedding.h"

namespace argus::triple_embedding {

template <class Weight, class Stored, class Visit>
void with_operand_of(Visit&& visit) {
  matmul::with_operand<Weight>(
      [&]<class Operand>() { visit.template operator()<Operand, Weight, Stored>(); });
}

// Calls visit.operator()<Operand, Weight, Stored>(): the operand type of the products, the stored type of
// weight, bias, output and its gradient, and the stored type of the tables.
template <class Visit>
void with_types(const Problem& problem, Visit&& visit) {
  const bool wide_tables = problem.table_dtype == Dtype::float32;
  switch (problem.dtype) {
    case Dtype::float64:
      return with_operand_of<double, double>(visit);
    case Dtype::float32:
      return with_operand_of<float, float>(visit);
    case Dtype::bfloat16:
      return wide_tables ? with_operand_of<BFloat16, float>(visit)
                         : with_operand_of<BFloat16, BFloat16>(visit);
    case Dtype::float16:
      return wide_tables ? with_operand_of<Float16, float>(visit) : with_operand_of<Float16, Float16>(visit);
  }
}

}  // namespace argus::triple_embedding
