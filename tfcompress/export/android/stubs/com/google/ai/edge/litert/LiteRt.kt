package com.google.ai.edge.litert

import android.content.res.AssetManager

enum class Accelerator { NONE, CPU, GPU, NPU }

abstract class JniHandle internal constructor() : AutoCloseable {
    final override fun close() {}
}

class Environment private constructor() : JniHandle()

class TensorBuffer internal constructor() : JniHandle() {
    fun writeInt(data: IntArray) {}

    fun writeFloat(data: FloatArray) {}

    fun writeInt8(data: ByteArray) {}

    fun writeBoolean(data: BooleanArray) {}

    fun readInt(): IntArray = intArrayOf()

    fun readFloat(): FloatArray = floatArrayOf()

    fun readInt8(): ByteArray = byteArrayOf()

    fun readBoolean(): BooleanArray = booleanArrayOf()
}

class CompiledModel private constructor() : JniHandle() {
    class Options constructor(internal val accelerators: Set<Accelerator>) {
        constructor(vararg accelerators: Accelerator) : this(setOf(*accelerators))
    }

    fun createInputBuffer(inputName: String, signature: String = ""): TensorBuffer =
        TensorBuffer()

    fun createOutputBuffer(outputName: String, signature: String = ""): TensorBuffer =
        TensorBuffer()

    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String = "",
    ) {}

    companion object {
        @JvmOverloads
        @JvmStatic
        fun create(
            assetManager: AssetManager,
            assetName: String,
            options: Options = Options(Accelerator.CPU),
            optionalEnv: Environment? = null,
        ): CompiledModel = CompiledModel()
    }
}
