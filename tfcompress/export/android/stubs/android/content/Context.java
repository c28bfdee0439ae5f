package android.content;

import android.content.res.AssetManager;
import org.jetbrains.annotations.NotNull;

public abstract class Context {
    public AssetManager getAssets() {
        return null;
    }

    public ContentResolver getContentResolver() {
        return null;
    }

    public Context getApplicationContext() {
        return null;
    }

    @NotNull
    public final String getString(int resId, Object... formatArgs) {
        return "";
    }
}
