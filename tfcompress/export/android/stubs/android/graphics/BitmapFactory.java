package android.graphics;

import java.io.InputStream;
import org.jetbrains.annotations.Nullable;

public class BitmapFactory {
    @Nullable
    public static Bitmap decodeStream(@Nullable InputStream is) {
        return null;
    }
}
