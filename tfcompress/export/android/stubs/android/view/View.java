package android.view;

import org.jetbrains.annotations.Nullable;

public class View {
    public interface OnClickListener {
        void onClick(View v);
    }

    public void setOnClickListener(@Nullable OnClickListener l) {}
}
