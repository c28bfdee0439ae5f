package android.content;

import android.net.Uri;
import org.jetbrains.annotations.NotNull;
import org.jetbrains.annotations.Nullable;

public class Intent {
    public static final String ACTION_GET_CONTENT = "android.intent.action.GET_CONTENT";

    public Intent(String action) {}

    @NotNull
    public Intent setType(@Nullable String type) {
        return this;
    }

    @Nullable
    public Uri getData() {
        return null;
    }
}
