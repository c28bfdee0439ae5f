package android.graphics;

import android.content.ContentResolver;
import android.net.Uri;
import java.io.IOException;
import org.jetbrains.annotations.NotNull;

public final class ImageDecoder {
    public static final int ALLOCATOR_SOFTWARE = 1;

    public abstract static class Source {}

    public static class ImageInfo {}

    public interface OnHeaderDecodedListener {
        void onHeaderDecoded(
                @NotNull ImageDecoder decoder, @NotNull ImageInfo info, @NotNull Source source);
    }

    @NotNull
    public static Source createSource(@NotNull ContentResolver cr, @NotNull Uri uri) {
        throw new IllegalStateException();
    }

    @NotNull
    public static Bitmap decodeBitmap(
            @NotNull Source src, @NotNull OnHeaderDecodedListener listener) throws IOException {
        throw new IOException();
    }

    public void setAllocator(int allocator) {}

    public int getAllocator() {
        return 0;
    }
}
