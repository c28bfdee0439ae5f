package android.content.res;

import java.io.IOException;
import java.io.InputStream;
import org.jetbrains.annotations.NotNull;

public final class AssetManager {
    @NotNull
    public InputStream open(@NotNull String fileName) throws IOException {
        throw new IOException();
    }

    @NotNull
    public AssetFileDescriptor openFd(@NotNull String fileName) throws IOException {
        throw new IOException();
    }
}
