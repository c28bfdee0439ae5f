package android.content;

import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.InputStream;
import org.jetbrains.annotations.NotNull;
import org.jetbrains.annotations.Nullable;

public abstract class ContentResolver {
    @Nullable
    public final InputStream openInputStream(@NotNull Uri uri) throws FileNotFoundException {
        return null;
    }
}
