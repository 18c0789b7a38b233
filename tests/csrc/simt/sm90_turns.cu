// What nvcc must accept for sm_90a, and turn into the instructions that the gates look for.
#include "sm90_turns.cuh"
