"""The fixed parts of the files that `c_array` writes, for `str.format`."""

ARRAY_HEADER = """\
/* A .tflite file as an array, aligned to 16 bytes as TFLite Micro needs it. Made by tfcompress. */
#ifndef {NAME}_H_
#define {NAME}_H_

#define {NAME}_SIZE {size}u

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}_data[{NAME}_SIZE];

#ifdef __cplusplus
}}
#endif

#endif /* {NAME}_H_ */
"""

ARRAY_SOURCE = """\
#include "{name}.h"

// const, so that it stays in flash memory.
alignas(16) const unsigned char {name}_data[{NAME}_SIZE] = {{
{bytes}
}};
"""

OPS = """\
/* The operators of the model, and no others. Made by tfcompress. */
#ifndef {NAME}_OPS_H_
#define {NAME}_OPS_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

#define {NAME}_OPS {count}

/* Give the resolver more room than {NAME}_OPS if it serves other models, too. */
template <unsigned int kRoom>
TfLiteStatus {name}_add_ops(tflite::MicroMutableOpResolver<kRoom>& resolver) {{
  static_assert(kRoom >= {NAME}_OPS, "the resolver has too little room");
{calls}  return kTfLiteOk;
}}

#endif /* {NAME}_OPS_H_ */
"""

ADD_OP = """\
  if (resolver.{method}() != kTfLiteOk) return kTfLiteError;
"""
NO_OPS = """\
  (void)resolver;
"""

SETTINGS = """\
/* Memory and number formats of the model. Made by tfcompress. */
#ifndef {NAME}_SETTINGS_H_
#define {NAME}_SETTINGS_H_

{arena}
/* real value = scale * (code - zero point) */
{ports}

#endif /* {NAME}_SETTINGS_H_ */
"""

ARENA = """\
/* Bytes of RAM, {note}.
   Kernels for other hardware may need more scratch memory: main.cc prints what is used. */
#define {NAME}_ARENA_SIZE {size}u
"""

ARENA_ESTIMATE = """\
/* NOT MEASURED: {note}.
   An estimate: the activations alone take this many bytes of RAM. */
#define {NAME}_ARENA_LOWER_BOUND {lower}u
/* A guess: twice as much, and 16 KiB. main.cc prints what is used. */
#define {NAME}_ARENA_SIZE {guess}u
"""

MAIN = """\
// Runs the model once on a fixed pattern and prints its outputs. Made by tfcompress.
#include <cstdint>

#include "{name}.h"
#include "{name}_ops.h"
#include "{name}_settings.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

alignas(16) uint8_t arena[{NAME}_ARENA_SIZE];

// Put your data here.
void FillInputs(tflite::MicroInterpreter& interpreter) {{
{fills}}}

void PrintOutputs(tflite::MicroInterpreter& interpreter) {{
{prints}}}

}}  // namespace

int main() {{
  tflite::InitializeTarget();
  const tflite::Model* model = tflite::GetModel({name}_data);
  if (model->version() != TFLITE_SCHEMA_VERSION) {{
    MicroPrintf("The model has schema version %d", static_cast<int>(model->version()));
    return 1;
  }}
  tflite::MicroMutableOpResolver<{NAME}_OPS> resolver;
  if ({name}_add_ops(resolver) != kTfLiteOk) {{
    MicroPrintf("The operators cannot be added");
    return 1;
  }}
{interpreter}
  if (interpreter.AllocateTensors() != kTfLiteOk) {{
    MicroPrintf("The arena of %d bytes is too small", static_cast<int>(sizeof(arena)));
    return 1;
  }}
  FillInputs(interpreter);
  if (interpreter.Invoke() != kTfLiteOk) {{
    MicroPrintf("The model cannot be run");
    return 1;
  }}
  PrintOutputs(interpreter);
  MicroPrintf("arena: %d bytes used", static_cast<int>(interpreter.arena_used_bytes()));
  return 0;
}}
"""

PLAIN = """\
  tflite::MicroInterpreter interpreter(model, resolver, arena, sizeof(arena));"""

VARIABLES = """\
  // Variables that the model keeps between runs.
  tflite::MicroAllocator* allocator = tflite::MicroAllocator::Create(arena, sizeof(arena));
  tflite::MicroResourceVariables* variables =
      tflite::MicroResourceVariables::Create(allocator, {variables});
  tflite::MicroInterpreter interpreter(model, resolver, allocator, variables);"""

FILL = """\
  TfLiteTensor* input_{i} = interpreter.input({i});
  for (int i = 0; i < {count}; ++i) input_{i}->data.{member}[i] = {value};
"""

PRINT = """\
  const TfLiteTensor* output_{i} = interpreter.output({i});
  for (int i = 0; i < {count}; ++i) {{
    MicroPrintf("output {i}[%d]: {form}", i, static_cast<{cast}>(output_{i}->data.{member}[i]));
  }}
"""

README = """\
# {name}: a model for TFLite Micro

| file | what it is |
|---|---|
| `{name}.h`, `{name}.cc` | the .tflite file, {size:,} bytes, as the array `{name}_data` |
| `{name}_ops.h` | `{name}_add_ops`, adds the operators of the model to a resolver: {ops} |
| `{name}_settings.h` | the size of the arena, scales and zero points |
| `main.cc` | runs the model once on a fixed pattern |

Arena (RAM): {arena}.

| | name | type | shape | real value of a code x |
|---|---|---|---|---|
{ports}

Compile the sources as C++17 with tflite-micro and its dependencies on the include path, and link
them with its library (https://github.com/tensorflow/tflite-micro). Keep the array `const`: it then
stays in flash memory.
"""
