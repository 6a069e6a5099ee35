"""How the page looks and which keys it knows: dark enough letters, no font or script from elsewhere."""

from __future__ import annotations

from anomalydiffusion.app.tabs.parts import gr

__all__ = ["CSS", "KEYS", "THEME"]

FONT = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "sans-serif"]  # of the machine: none is fetched
# gradio's own orange, red and grey are too pale for letters: these have a contrast of 4.5 and more
THEME = gr.themes.Default(font=FONT, font_mono=["ui-monospace", "Consolas", "monospace"]).set(
    button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
    button_cancel_background_fill="#b91c1c", button_cancel_background_fill_hover="#991b1b",
    body_text_color_subdued="*neutral_600", block_title_text_color="*neutral_700", block_label_text_color="*neutral_700",
    input_placeholder_color="*neutral_600", input_placeholder_color_dark="*neutral_400", color_accent="*primary_700",
)  # fmt: skip
CSS = """
.gradio-container {max-width: 1240px !important; width: 100% !important; min-width: 0 !important; margin: 0 auto !important}
.dark {--color-accent: var(--primary-400)}
.grid-container, #learn-preview .image-frame {padding-top: 1.9rem !important}
#learn-preview .image-container, #learn-preview .image-frame {height: auto !important}
#proof-sheets .thumbnail-item, #proof-sheets img {aspect-ratio: auto !important; height: auto !important}
@media (max-width: 640px) {
  #review-grid, #review-pair, #draw-result, #proof-sheets {height: auto !important}
  .grid-wrap {height: auto !important; max-height: 75vh}
  .grid-container {grid-template-columns: repeat(2, 1fr) !important}
  #proof-sheets .grid-container {grid-template-columns: 1fr !important}
}
"""
KEYS = """
<script>
document.addEventListener('keydown', event => {
  if (event.target.closest('input, textarea, [contenteditable]') || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = {a: 'review-keep', r: 'review-reject', n: 'review-next', p: 'review-previous', d: 'review-redraw'}[event.key];
  const found = button && document.getElementById(button);
  if (found && found.offsetParent) found.click();
});
</script>
"""
