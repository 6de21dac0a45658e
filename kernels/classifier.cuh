// The fused classifier: softmax, cross entropy and the gradient of the logits, in place.
#pragma once
#include "kernels/common.cuh"

// For each of N rows: losses (N) fp32 = logsumexp(logits[0..V)) - logits[target]; and, when write_dlogits,
// logits (N,Vp) <- (softmax - onehot(target)) * dloss for columns < V, 0 for the padding V..Vp.
// Padding columns never enter the softmax, whatever they hold. A target < 0 is masked: loss 0, gradient 0.
// Vp is a multiple of 16 bytes; V is any number from 1 to Vp.
void classifier(floatX* logits, float* losses, const int* targets, float dloss, int64_t N, int V, int Vp,
                bool write_dlogits, cudaStream_t stream);

// The kernels behind it; classifier() takes classifier_choice()'s. Both read a row once from memory and write it once,
// `cached` as long as the cache holds all rows that are being worked on. `resident` always writes gradients, and needs
// rows that fit in shared memory.
enum class ClassifierKernel { cached, resident };
bool classifier_row_fits(int Vp);
ClassifierKernel classifier_choice(int Vp, bool write_dlogits);
void classifier_with(ClassifierKernel kernel, floatX* logits, float* losses, const int* targets, float dloss, int64_t N,
                     int V, int Vp, bool write_dlogits, cudaStream_t stream);

// total (1) fp64 += SUM losses (N), in a fixed order. For the mean loss of an update over all its micro-batches.
void sum_losses(double* total, const float* losses, int64_t N, cudaStream_t stream);
