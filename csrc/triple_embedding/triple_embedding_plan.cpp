// Decisions shared by both passes: which tables are projected, and the order of each table's rows.
#include "common/cpu/row_order.h"
#include "triple_embedding/triple_embedding.h"

namespace argus::triple_embedding {
namespace {

// Adding a row of the projected table costs as much as multiplying this many elements of a gathered row.
constexpr int64_t kAddedRow = 6;

}  // namespace

void choose_projected(Problem& problem, int64_t most_elements) {
  std::vector<int64_t> readers(problem.tables.size());
  for (const Column& column : problem.columns) ++readers[static_cast<size_t>(column.table)];
  int64_t stacked = 0;
  for (size_t index = 0; index < problem.tables.size(); ++index) {
    Table& table = problem.tables[index];
    const bool small = table.rows <= problem.events / 4;
    const int64_t rows = small ? table.rows * readers[index] : 0;
    const bool cheaper =
        small && table.rows * table.width + problem.events * kAddedRow < problem.events * table.width;
    const bool fits = (stacked + rows) * problem.width <= most_elements;
    table.projected = readers[index] > 0 && cheaper && fits;
    if (table.projected) stacked += rows;
  }
}

RowOrder order_rows(const Problem& problem, int table) {
  std::vector<const int64_t*> lists;
  for (const Column& column : problem.columns) {
    if (column.table == table) lists.push_back(column.ids);
  }
  return RowOrder("triple_embedding", lists, problem.events, problem.tables[static_cast<size_t>(table)].rows);
}

}  // namespace argus::triple_embedding
