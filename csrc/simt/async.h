// Where the executor tells the twins of asynchronous instructions that a launch or a block begins or ends, or
// that a thread has left.
#pragma once

namespace argus::simt {

void begin_launch_turns();
void begin_block_async(int threads);
// Faults where a copy may still be under way: nothing of a block may outlive it.
void end_block_async();
void exit_thread(int thread);

}  // namespace argus::simt
