/* libingot.so: the ops of kernels/ that PyTorch calls, behind a C ABI, the same object code that trains. Plain C (C11);
 * any language that can call C can call it: scripts/ingot_torch.py does so for PyTorch.
 *
 * Each function that returns int returns an ingot_status. Nothing is thrown across this boundary; after a call that did
 * not return INGOT_DONE, ingot_last_error() has one line that says what was wrong and what to do. What an op computes,
 * its shapes, dtypes and aliasing, is said where it is declared: kernels/rmsnorm.h for ingot_rmsnorm_forward(), and so
 * on; the fields here have the same names. Flags are 0 or 1, reserved fields 0; anything else is refused.
 *
 * Memory is the caller's: no op allocates or frees memory of the device, or keeps a pointer. Ops that need scratch
 * memory have a function that says how much. On CUDA an op only launches its work on the caller's stream (it can be
 * captured in a CUDA graph; all graphs of a process that live may hold 65535 attention launches on Hopper) and never
 * looks at the device's memory: arrays that it reads as indices (masks, tokens, targets, positions) must hold what
 * their header says, else the result is undefined or the stream stops with a CUDA error. Functions may be called from
 * any thread, whether or not CUDA has a current context there, and leave the thread's current GPU and context as they
 * were; one GPU's memory stays on that GPU.
 *
 * GEMMs (kernels/matmul/matmul.h) are not here: whoever calls this has cuBLAS already.
 */
#ifndef INGOT_C_API_H
#define INGOT_C_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define INGOT_API __attribute__((visibility("default")))

/* Raised whenever a struct, an enumeration or the meaning of a function changes. */
#define INGOT_ABI_VERSION 3
/* Of the library that was loaded: refuse to go on if it is not INGOT_ABI_VERSION. */
INGOT_API int32_t ingot_abi_version(void);
/* "0.1.0" */
INGOT_API const char* ingot_version(void);
/* 1 if the library was built with the CUDA device, else 0. */
INGOT_API int32_t ingot_has_cuda(void);

/* The meaning of the programs' exit codes. */
typedef enum ingot_status {
    INGOT_DONE = 0,
    INGOT_FAULT = 1,       /* CUDA reported an error, or a fault of ours */
    INGOT_BAD_ARGUMENT = 2 /* shape, dtype, stride, null pointer, no such device, a struct of another version */
} ingot_status;

/* What the last call on this thread that failed had to say: one line. Stays until the next call on this thread that
 * fails. */
INGOT_API const char* ingot_last_error(void);

typedef enum ingot_dtype {
    INGOT_FP64 = 0, /* on the CPU only: the oracle */
    INGOT_FP32 = 1,
    INGOT_BF16 = 2,
    INGOT_FP16 = 3,
    INGOT_INT32 = 4,
    INGOT_UINT8 = 5
} ingot_dtype;

/* A strided view. All zeros: no tensor, where one is optional. Memory lies on the device of the call.
 *
 * Each stride is honoured or the call is refused, whatever the op: a stride of 0, or rows that share memory, too. A
 * tensor is contiguous, unless the op's header calls it a view. A view that is read has a contiguous last axis, its
 * other strides are free; of a view that is written no two elements may share memory. Kernels on tensor cores ask for
 * alignment beyond that (attention.h). The stride of an axis of one element says nothing and may be anything from 0 on.
 * Workspaces are contiguous and begin at a multiple of 16 bytes. */
typedef struct ingot_tensor {
    void* data;
    int32_t dtype; /* ingot_dtype */
    int32_t ndim;  /* 1 to 4 */
    int64_t shape[4];
    int64_t strides[4]; /* in elements, not negative */
} ingot_tensor;

typedef enum ingot_device_kind { INGOT_CPU = 0, INGOT_CUDA = 1 } ingot_device_kind;

/* Where an op runs. On the CPU it is done when the function returns; fp32 and fp64 only. */
typedef struct ingot_device {
    uint64_t struct_size; /* sizeof(ingot_device), and likewise below: another size is refused */
    int32_t kind;         /* ingot_device_kind */
    int32_t index;        /* which GPU, as CUDA counts them; the thread's current GPU is left as it was */
    void* stream;         /* cudaStream_t of that GPU; null is CUDA's default stream */
} ingot_device;

/* ---- Attention: kernels/attention/attention.h ---- */

/* All (N) int32, contiguous and non-decreasing. */
typedef struct ingot_attention_mask {
    ingot_tensor first_key, end_key, first_query, end_query;
} ingot_attention_mask;

typedef enum ingot_attention_kernel {
    INGOT_ATTENTION_AUTOMATIC = 0, /* views with a stride of 0 (one head seen as many) take sm80, never sm90 */
    INGOT_ATTENTION_SIMT = 1,      /* without tensor cores: for debugging */
    INGOT_ATTENTION_SM80 = 2,      /* tensor cores of any GPU since sm_80; bf16 and fp16 */
    INGOT_ATTENTION_SM90 = 3       /* Hopper alone (sm_90); bf16 and fp16, heads of 64 or 128 */
} ingot_attention_kernel;

/* All zeros: the automatic choice, and the same bits every time. */
typedef struct ingot_attention_options {
    int32_t kernel;    /* ingot_attention_kernel */
    int32_t any_order; /* 1: backward may add to dq in any order, if that is faster */
} ingot_attention_options;

typedef struct ingot_attention_forward_arguments {
    uint64_t struct_size;
    ingot_tensor out, lse;
    ingot_tensor q, k, v, slopes; /* slopes: optional */
    ingot_attention_mask mask;
    double scale;
    ingot_attention_options options;
} ingot_attention_forward_arguments;
INGOT_API int ingot_attention_forward(const ingot_device*, const ingot_attention_forward_arguments*);

typedef struct ingot_attention_backward_arguments {
    uint64_t struct_size;
    ingot_tensor dq, dk, dv;
    ingot_tensor dout, out, lse, q, k, v, slopes; /* slopes: optional */
    ingot_attention_mask mask;
    double scale;
    ingot_attention_options options;
    ingot_tensor workspace; /* uint8 */
} ingot_attention_backward_arguments;
INGOT_API int ingot_attention_backward(const ingot_device*, const ingot_attention_backward_arguments*);
/* In bytes, from shape and dtype of q; 0 on the CPU. */
INGOT_API int ingot_attention_backward_workspace(const ingot_device*, const ingot_tensor* q,
                                                 const ingot_attention_options*, uint64_t* bytes);

/* ---- kernels/rmsnorm.h ---- */

typedef struct ingot_rmsnorm_forward_arguments {
    uint64_t struct_size;
    ingot_tensor out, rstd;
    ingot_tensor x, weight;
    double eps;
} ingot_rmsnorm_forward_arguments;
INGOT_API int ingot_rmsnorm_forward(const ingot_device*, const ingot_rmsnorm_forward_arguments*);

/* dweight is added to, unless overwrite is 1: zero it first. */
typedef struct ingot_rmsnorm_backward_arguments {
    uint64_t struct_size;
    ingot_tensor dx, dweight;
    ingot_tensor dout, x, rstd, weight, dresidual; /* dresidual: optional */
    ingot_tensor workspace;                        /* uint8 */
    int32_t overwrite;                             /* 0: dweight is added to; 1: it is overwritten */
    int32_t reserved;                              /* 0 */
} ingot_rmsnorm_backward_arguments;
INGOT_API int ingot_rmsnorm_backward(const ingot_device*, const ingot_rmsnorm_backward_arguments*);
INGOT_API int ingot_rmsnorm_backward_workspace(const ingot_device*, const ingot_tensor* x, uint64_t* bytes);

/* ---- kernels/swiglu.h ---- */

typedef struct ingot_swiglu_forward_arguments {
    uint64_t struct_size;
    ingot_tensor out, gate_up;
} ingot_swiglu_forward_arguments;
INGOT_API int ingot_swiglu_forward(const ingot_device*, const ingot_swiglu_forward_arguments*);

typedef struct ingot_swiglu_backward_arguments {
    uint64_t struct_size;
    ingot_tensor dgate_up, dout, gate_up;
    ingot_tensor out; /* optional */
} ingot_swiglu_backward_arguments;
INGOT_API int ingot_swiglu_backward(const ingot_device*, const ingot_swiglu_backward_arguments*);

/* ---- kernels/rope.h ---- */

typedef struct ingot_rope_arguments {
    uint64_t struct_size;
    ingot_tensor x; /* turned in place; in backward its gradient */
    ingot_tensor positions, table;
} ingot_rope_arguments;
INGOT_API int ingot_rope_forward(const ingot_device*, const ingot_rope_arguments*);
INGOT_API int ingot_rope_backward(const ingot_device*, const ingot_rope_arguments*);
/* ---- kernels/cross_entropy.h ---- */

typedef struct ingot_cross_entropy_arguments {
    uint64_t struct_size;
    ingot_tensor logits; /* become their gradient if write_gradient */
    ingot_tensor losses, targets;
    int64_t vocab_size;
    double z_loss;
    const double* loss_scale; /* one number on the device, which multiplies the gradient; null: 1 */
    int32_t write_gradient;   /* 0 or 1 */
    int32_t reserved;         /* 0 */
} ingot_cross_entropy_arguments;
INGOT_API int ingot_cross_entropy(const ingot_device*, const ingot_cross_entropy_arguments*);

#ifdef __cplusplus
}
#endif

#endif /* INGOT_C_API_H */
