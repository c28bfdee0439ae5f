package android.graphics;

import org.jetbrains.annotations.NotNull;

public final class Bitmap {
    public static Bitmap createScaledBitmap(
            @NotNull Bitmap src, int dstWidth, int dstHeight, boolean filter) {
        return src;
    }

    public void getPixels(
            int[] pixels, int offset, int stride, int x, int y, int width, int height) {}
}
