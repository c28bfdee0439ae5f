package android.app;

import android.content.Context;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;
import org.jetbrains.annotations.NotNull;
import org.jetbrains.annotations.Nullable;

public class Activity extends Context {
    public static final int RESULT_OK = -1;

    protected void onCreate(@Nullable Bundle savedInstanceState) {}

    protected void onDestroy() {}

    protected void onActivityResult(int requestCode, int resultCode, @Nullable Intent data) {}

    public void setContentView(int layoutResID) {}

    public <T extends View> T findViewById(int id) {
        return null;
    }

    public void startActivityForResult(@NotNull Intent intent, int requestCode) {}

    public final void runOnUiThread(Runnable action) {}
}
