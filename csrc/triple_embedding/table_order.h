// The entries of the tables in the order of their rows; an entry is the read of one row by one event of one
// column.
//
// Tables of few rows are counted: 4 launches and about a third of the bytes of torch's sort, which moves
// 32-bit keys and 64-bit indices four times. The other tables are sorted by torch.
#pragma once

#include <limits>
#include <tuple>
#include <vector>

#include "common/torch/sort.h"
#include "common/torch/stream.h"
#include "triple_embedding/inputs.h"
#include "triple_embedding/triple_embedding_cuda.h"

namespace argus::triple_embedding {

// Tables whose rows fit one 32-bit numbering, and their entries in the order of that numbering.
struct OrderedTables {
  CudaKeys keys{};
  std::vector<size_t> tables;
  std::vector<int> columns_before;  // of each table's first column
  Tensor ordered, positions;
};

// The counted tables, or the others, in as few groups as 32 bits allow, usually one.
inline std::vector<OrderedTables> group_tables(const Inputs& inputs, bool counted) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  std::vector<OrderedTables> groups;
  int64_t next_key = 0;
  for (size_t index = 0; index < inputs.tables.size(); ++index) {
    const int64_t rows = inputs.tables[index].size(0);
    if (rows >= kMost) fail(kOp, "tables[", index, "] has ", rows, " rows, expected fewer than ", kMost);
    if ((rows <= kMaxCountedRows) != counted) continue;
    if (groups.empty() || next_key + rows + 1 > kMost) {
      groups.emplace_back();
      next_key = 0;
    }
    CudaKeys& keys = groups.back().keys;
    groups.back().tables.push_back(index);
    groups.back().columns_before.push_back(keys.count);
    for (size_t k = 0; k < inputs.columns.size(); ++k) {
      if (inputs.columns[k] != static_cast<int64_t>(index)) continue;
      keys.columns[keys.count] = static_cast<int>(k);
      keys.first_keys[keys.count] = static_cast<int32_t>(next_key);
      keys.table_rows[keys.count++] = rows;
    }
    next_key += rows + 1;
  }
  return groups;
}

inline void count_entries(const Inputs& inputs, OrderedTables& group, Tensor& keys, void* stream) {
  CudaCounts counts{};
  counts.keys = group.keys;
  lay_out_counts(counts);
  Tensor found = torch::stable::new_empty(
      inputs.ids, {counts.lines_in_all * counted_chunks(group.keys.events)}, ScalarType::Int);
  counts.counts = found.mutable_data_ptr<int32_t>();
  launch_counts(counts, stream);
  const Tensor sums = running_sum(found);
  counts.sums = sums.const_data_ptr<int64_t>();
  group.positions = torch::stable::new_empty(inputs.ids, {group.keys.count * group.keys.events});
  counts.positions = group.positions.mutable_data_ptr<int64_t>();
  launch_places(counts, stream);
  group.ordered = keys;
}

inline std::vector<OrderedTables> order_tables(const Inputs& inputs, const CudaProblem& problem) {
  void* const stream = CurrentStream(inputs.ids).get();
  std::vector<OrderedTables> all;
  for (const bool counted : {true, false}) {
    for (OrderedTables& group : group_tables(inputs, counted)) {
      group.keys.ids = problem.ids;
      group.keys.events = problem.events;
      Tensor keys =
          torch::stable::new_empty(inputs.ids, {group.keys.count * problem.events}, ScalarType::Int);
      group.keys.keys = keys.mutable_data_ptr<int32_t>();
      if (counted) {
        count_entries(inputs, group, keys, stream);
      } else {
        launch_keys(group.keys, stream);
        std::tie(group.ordered, group.positions) = sort_stably(keys);
      }
      all.push_back(group);
    }
  }
  return all;
}

}  // namespace argus::triple_embedding
