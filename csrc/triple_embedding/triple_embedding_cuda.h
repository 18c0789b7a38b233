// Parameters and launchers of the CUDA kernels of triple_embedding.
//
// The kernels see the Σ d elements of an event in chunks of 16 bytes: a column takes as many chunks as it
// needs and begins a new one, so that a chunk belongs to one column. *Depth* counts these padded elements.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::triple_embedding {

constexpr int kMaxColumns = 32;

struct CudaColumn {
  const void* table;
  int64_t rows, row_stride, column_stride;
  int width, offset;  // of its rows; the weight's first row for it
  int first_chunk;    // laid out by lay_out_chunks
  bool aligned;       // chunks of its rows lie on 16-byte addresses
};

struct CudaProblem {
  CudaColumn columns[kMaxColumns];
  const int64_t* ids;  // [count, events]
  const void* weight;  // [Σ width, width], contiguous
  int64_t events;
  int count, width, chunks;
  Dtype dtype, table_dtype;  // table_dtype: dtype, or float32
};

// Fills in the chunks; `depth` is then that of the gathered gradient.
void lay_out_chunks(CudaProblem& problem);
int depth(const CudaProblem& problem);

struct CudaForward {
  CudaProblem problem;
  const void* bias;  // [width] or null
  void* output;      // [events, width]
  int loop_blocks;   // on the product loop of sm_90, at most so many of one block a multiprocessor; 0: not
};

// What the product loop of sm_90 multiplies: 16 bits, rows of the weight and of the output at multiples of 16
// bytes, a depth whose weight fits shared memory beside the gathered rows.
constexpr int kMaxLoopChunks = 80;
bool fits_product_loop(const CudaForward& forward);
// The blocks of the loop where it fits and the current GPU has compute capability 9.0, else 0.
int product_loop_blocks(const CudaForward& forward);

// Parts of the weight's and the bias's gradient, added in order afterwards; their number depends on the
// number of events alone.
int weight_parts(int64_t events);
int bias_parts(int64_t events);

struct CudaBackward {
  CudaProblem problem;
  const void* gradient;      // [events, width], contiguous
  float* gathered_gradient;  // [events, depth], or null where the tables need none
  float* weight_parts;       // [weight_parts, depth, width], or null
  float* bias_parts;         // [bias_parts, width], or null
  void* d_weight;            // [Σ width, width], or null
  void* d_bias;              // [width], or null
};

// The rows of several tables in one numbering of 32 bits, in which their entries are ordered together:
// key first_key + 1 + id, first_key for an id that is missing or outside its table. The entries of a table
// stay together, as its columns do in `columns`; position c · events + t is that of column columns[c] and of
// event t.
struct CudaKeys {
  const int64_t* ids;  // [all columns, events]
  int32_t* keys;       // [count, events]
  int64_t events;
  int count;
  int columns[kMaxColumns];
  int32_t first_keys[kMaxColumns];  // of the table that columns[c] reads
  int64_t table_rows[kMaxColumns];
};

// Tables of up to so many rows are ordered by counting, chunk by chunk of their columns' events.
constexpr int kMaxCountedRows = 999;
constexpr int kCountedEvents = 1024;

// The entries of small tables, in order: keys.keys and positions. Counts are ordered by table, row (first the
// ids without a row), reading column and chunk of events.
struct CudaCounts {
  CudaKeys keys;
  int64_t lines[kMaxColumns];  // lines of counts, one count per chunk, before the column's first line
  int readers[kMaxColumns];    // columns that read the table, the lines from one row to the next
  int64_t lines_in_all;
  int32_t* counts;      // [lines_in_all, counted_chunks]
  const int64_t* sums;  // their inclusive running sum
  int64_t* positions;   // [count, events]
};

// Fills in the lines; of the keys, all but the results must be set.
void lay_out_counts(CudaCounts& counts);
int64_t counted_chunks(int64_t events);

constexpr int kWindow = 32;  // sorted entries per warp

// The gradient of one table: for each row that was read, the sum of its rows of the gathered gradient.
struct CudaRowSums {
  const float* gathered_gradient;
  int first_elements[kMaxColumns];  // of each reading column, in a row of the gathered gradient
  const int32_t* keys;              // [count], ascending; row keys[i] − first_key − 1, none where that is −1
  const int64_t* positions;         // [count]; less first_position: reading column · events + event
  const int64_t* slots;             // [count], row-sparse: leaders up to here, itself included; dense: null
  int64_t* unique_rows;             // row-sparse: the rows that were read
  float* heads;                     // [windows, width], the sums of runs that began before a window
  float* tails;                     // [windows, width], of those that begin in it and go on
  void* values;                     // dense: [table_rows, width], zeros; row-sparse: [unique, width]
  int64_t events, count, first_position;
  int32_t first_key;
  int depth, width;
  Dtype dtype;  // of the table
};

void launch_forward(const CudaForward& forward, void* stream);
void launch_backward(const CudaBackward& backward, void* stream);
void launch_keys(const CudaKeys& keys, void* stream);
void launch_counts(const CudaCounts& counts, void* stream);
void launch_places(const CudaCounts& counts, void* stream);
// leaders[i] = whether keys[i] is that of a row and the first of its run.
void launch_leaders(const int32_t* keys, int64_t count, int32_t first_key, int64_t* leaders, void* stream);
void launch_row_sums(const CudaRowSums& sums, void* stream);

}  // namespace argus::triple_embedding
