package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.util.Map;
import org.jetbrains.annotations.NotNull;

public final class Interpreter implements AutoCloseable {
    public Interpreter(@NotNull ByteBuffer byteBuffer) {}

    public void runForMultipleInputsOutputs(
            Object @NotNull [] inputs, @NotNull Map<Integer, Object> outputs) {}

    @Override
    public void close() {}
}
