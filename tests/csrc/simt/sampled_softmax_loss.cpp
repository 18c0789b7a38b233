// The launchers of sampled_softmax_loss on host memory, for ctypes.
#include "on_host.h"
#include "sampled_softmax_loss/loop_keys_sm90.cuh"

namespace {

using namespace argus::sampled_softmax_loss;

// What the tests choose of the plan: the blocks that a GPU wants, and how much of dS a strip holds.
struct Cut {
  int64_t blocks;
  int64_t strip_elements;
  int64_t loop;  // the forward pass on the product loop of sm_90, where it can
};

CudaPlan plan_of(const Inputs& inputs, const Cut& cut) {
  return CudaPlan(inputs.rows, inputs.drawn, inputs.width, cut.loop && fits_product_loop(inputs), cut.blocks,
                  cut.strip_elements);
}

size_t element_bytes(const Inputs& inputs) {
  return inputs.dtype == argus::Dtype::float32 ? 4 : 2;
}

size_t count(int64_t a, int64_t b = 1, int64_t c = 1) {
  return static_cast<size_t>(a * b * c);
}

void put_inputs(on_host::Device& device, Inputs& inputs) {
  const size_t rows = count(inputs.rows), drawn = count(inputs.drawn);
  const size_t row_bytes = count(inputs.width) * element_bytes(inputs);
  device.input("query", inputs.query, rows * row_bytes);
  device.input("positive", inputs.positive, rows * row_bytes);
  device.input("candidates", inputs.candidates, drawn * row_bytes);
  device.input("positive_ids", inputs.positive_ids, rows * 8);
  device.input("candidate_ids", inputs.candidate_ids, drawn * 8);
  device.input("log_q", inputs.log_q, drawn * 4);
  device.input("positive_log_q", inputs.positive_log_q, rows * 4);
  device.input("scale", inputs.scale, 4);
  device.input("row_weight", inputs.row_weight, rows * 4);
  device.input("query_owner", inputs.query_owner, rows * 8);
  device.input("candidate_owner", inputs.candidate_owner, drawn * 8);
}

// Memory for the kernels, full of NaN; everything of it is a device buffer of its own, so that its bounds are
// watched.
class Scratch {
 public:
  explicit Scratch(on_host::Device& device) : device_(device) {}

  template <class T>
  void put(const char* name, T*& pointer, size_t bytes) {
    memory_.emplace_back(bytes, 0xff);
    pointer = reinterpret_cast<T*>(memory_.back().data());
    device_.output(name, pointer, bytes);
  }

 private:
  on_host::Device& device_;
  std::vector<std::vector<unsigned char>> memory_;
};

void forward(Inputs inputs, Outputs outputs, const Cut& cut) {
  const CudaPlan plan = plan_of(inputs, cut);
  const size_t rows = count(inputs.rows), parts = count(plan.forward_chunks, inputs.rows);
  on_host::Device device;
  put_inputs(device, inputs);
  device.output("loss", outputs.loss, rows * 4);
  device.output("lse", outputs.lse, rows * 4);
  device.output("statistics", outputs.statistics, 2 * rows * 4);
  Scratch scratch(device);
  Workspace workspace{};
  scratch.put("product", workspace.product, rows * 4);
  scratch.put("peak", workspace.peak, parts * 4);
  scratch.put("total", workspace.total, parts * 4);
  scratch.put("kept", workspace.kept, parts * 4);
  forward_cuda(inputs, outputs, plan, workspace, nullptr);
  device.copy_back();
}

void backward(Inputs inputs, Gradients gradients, const Cut& cut) {
  const CudaPlan plan = plan_of(inputs, cut);
  const size_t rows = count(inputs.rows), element = element_bytes(inputs);
  const size_t matrix = count(inputs.rows, inputs.width), drawn_matrix = count(inputs.drawn, inputs.width);
  on_host::Device device;
  put_inputs(device, inputs);
  device.input("d_loss", gradients.d_loss, rows * 4);
  device.input("d_lse", gradients.d_lse, rows * 4);
  device.input("statistics", gradients.statistics, 2 * rows * 4);
  device.output("d_query", gradients.d_query, matrix * element);
  device.output("d_positive", gradients.d_positive, matrix * element);
  device.output("d_candidates", gradients.d_candidates, drawn_matrix * element);
  device.output("d_scale", gradients.d_scale, 4);
  Scratch scratch(device);
  Workspace workspace{};
  scratch.put("product", workspace.product, rows * 4);
  scratch.put("whole", workspace.whole, rows * 4);
  scratch.put("row_scale", workspace.row_scale, rows * 4);
  scratch.put("amplify", workspace.amplify, 2 * 4);
  scratch.put("d_scores", workspace.d_scores, count(plan.strip_rows, plan.score_stride) * element);
  scratch.put("sums", workspace.sums, count(plan.chunks, 3, plan.strip_rows) * 4);
  if (gradients.d_query != nullptr)
    scratch.put("partial d_query", workspace.d_query, count(plan.splits, plan.strip_rows, inputs.width) * 4);
  if (gradients.d_candidates != nullptr && plan.strips > 1)
    scratch.put("sum of d_candidates", workspace.d_candidates, drawn_matrix * 4);
  if (plan.loop && inputs.row_weight != nullptr)
    scratch.put("queries", workspace.queries, count(plan.strip_rows, inputs.width) * element);
  backward_cuda(inputs, gradients, plan, workspace, nullptr);
  device.copy_back();
}

// A block for each half of a tile of scores: its LoopKeys::left_out.
__global__ void left_out_kernel(Kernel<__half> k, uint32_t* words) {
  ARGUS_SHARED(LoopKeys, keys, [1]);
  keys[0].load(k, static_cast<int>(blockIdx.y) * LoopKeys::kRows,
               static_cast<int>(blockIdx.x) * kLoopColumns);
  LoopKeys::synchronize();
  if (threadIdx.x == 0) words[blockIdx.y * gridDim.x + blockIdx.x] = keys[0].left_out;
}

void left_out(const Inputs& given, uint32_t* words) {
  Kernel<__half> k{.in = given, .plan = plan_of(given, {1, 1 << 16, 1}), .strip_rows = given.rows};
  const auto columns = static_cast<unsigned>((given.drawn + kLoopColumns - 1) / kLoopColumns);
  const auto rows = static_cast<unsigned>((given.rows + LoopKeys::kRows - 1) / LoopKeys::kRows);
  on_host::Device device;
  put_inputs(device, k.in);
  const std::vector<float> zeros(count(given.rows));
  const float* products = zeros.data();
  device.input("product", products, count(given.rows) * 4);
  k.work.product = const_cast<float*>(products);
  device.output("words", words, count(rows, columns) * 4);
  argus::launch("sampled_softmax_loss", left_out_kernel,
                argus::LaunchShape{dim3(columns, rows), dim3(kLoopThreads)}, nullptr, k, words);
  device.copy_back();
}

}  // namespace

struct Words {
  uint32_t* words;
};
// Which pieces of 8 rows × 64 candidates leave something out, a word for each 64 rows × 256 candidates.
ARGUS_EXPORT void sampled_softmax_loss_left_out(const Inputs* inputs, const Words* found, uint64_t seed,
                                                char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { left_out(*inputs, found->words); });
}

ARGUS_EXPORT int sampled_softmax_loss_fits_loop(const Inputs* inputs) {
  return fits_product_loop(*inputs) ? 1 : 0;
}

// The blocks that share their operands in a product of so many rows.
ARGUS_EXPORT int sampled_softmax_loss_loop_cluster(int64_t rows) {
  return product_of<ScoreLoop<__half>>(static_cast<uint64_t>(rows), 1, 1).cluster;
}

ARGUS_EXPORT void sampled_softmax_loss_on_host(const Inputs* inputs, const Outputs* outputs, const Cut* cut,
                                               uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { forward(*inputs, *outputs, *cut); });
}

ARGUS_EXPORT void sampled_softmax_loss_backward_on_host(const Inputs* inputs, const Gradients* gradients,
                                                        const Cut* cut, uint64_t seed, char* report,
                                                        size_t bytes) {
  on_host::run(seed, report, bytes, [&] { backward(*inputs, *gradients, *cut); });
}

// Blocks of the forward pass, of the score gradients and of d_query for given sizes.
ARGUS_EXPORT void sampled_softmax_loss_blocks(int64_t rows, int64_t drawn, int64_t width, int64_t* blocks) {
  const CudaPlan plan(rows, drawn, width, false);
  const int64_t row_tiles = (rows + plan.tile - 1) / plan.tile, strip_tiles = plan.strip_rows / plan.tile;
  blocks[0] = row_tiles * plan.forward_chunks;
  blocks[1] = strip_tiles * plan.chunks;
  blocks[2] = strip_tiles * ((width + plan.tile - 1) / plan.tile) * plan.splits;
}
