"""How all our HTML pages begin, and what they look like: text, buttons, legend, the frame of a plot."""

from trace_transfer.palette import NO_VALUE

GREY = f'<svg width="14" height="14"><rect width="14" height="14" fill="{NO_VALUE}"/></svg>'

# For a `string.Template`; a page's own rules and `</style>` follow.
HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 0; padding: 16px 24px; font: 14px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
h1 { margin: 0; font-size: 21px; line-height: 1.3; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 2px 0 10px; color: #555; max-width: 1100px; overflow-wrap: anywhere; }
button { font: inherit; padding: 4px 12px; color: #333; background: #fff;
  border: 1px solid #b5b5b5; border-radius: 4px; }
button[aria-pressed=true] { background: #2f4858; border-color: #2f4858; color: #fff; }
button:not([aria-pressed=true]):hover { background: #f0f0f0; cursor: pointer; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; font-size: 13px; }
.legend span { display: flex; align-items: center; gap: 6px; }
.mark { fill: #fff; stroke: #1a1a1a; stroke-width: 1.2; }
.scroll { overflow-x: auto; }
.frame > div { position: absolute; inset: 0; }
"""
