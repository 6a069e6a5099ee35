"""What a page looks like to who cannot see it well, or has a narrow screen: asked of a real browser."""

import re

from playwright.sync_api import Page

__all__ = ["nameless", "pale", "wide"]

CONTROLS = "button|textbox|combobox|slider|spinbutton|checkbox|radio|tab|link|searchbox|listbox|switch|menuitem"
CONTROL = re.compile(rf"^\s*- (?:{CONTROLS})(?![\w-])(?! \")(.*)$")
PALE = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    if (/^(radio|checkbox|range)$/.test(element.type)) continue;  // their value is not what is shown
    const words = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.textContent.trim()).join('');
    const asked = element.placeholder && !element.value ? element.placeholder : '';
    const style = getComputedStyle(element, asked ? '::placeholder' : null), own = getComputedStyle(element);
    if (!(words || asked || element.value) || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (/^(SCRIPT|STYLE|OPTION)$/.test(element.tagName) || element.closest('svg, [disabled], [aria-hidden=true]')) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || own.clipPath !== 'none') continue;
    const back = ground(element), front = over(rgba((words ? own : style).color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a), contrast = (high + 0.05) / (low + 0.05);
    const text = (words || asked || element.value).slice(0, 40);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} <${element.tagName} class=${element.className}> ${text}`);
  }
  return found;
}
"""
WIDE = """
() => {
  const most = document.documentElement.clientWidth + 1, found = [];
  if (document.documentElement.scrollWidth > most) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  const scrolls = element => {
    for (let at = element.parentElement; at && at !== document.body; at = at.parentElement)
      if (/hidden|clip/.test(getComputedStyle(at).overflowX) || at.className.includes?.('table')) return true;  // tables may be moved
    return false;
  };
  for (const element of document.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > most || box.left < -1) && element.checkVisibility() && !scrolls(element))
      found.push(`${Math.round(box.left)}..${Math.round(box.right)} <${element.tagName} id=${element.id} class=${element.className}>`);
  }
  for (const element of document.querySelectorAll('button, label > span, [role=tab]'))
    if (element.checkVisibility() && element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX !== 'visible')
      found.push(`cut: <${element.tagName} id=${element.id}> ${element.innerText.slice(0, 40)}`);
  return found;
}
"""


def nameless(page: Page) -> list[str]:
    """Controls that a screen reader has no name for, as lines of the browser's own tree."""
    return [line for line in page.locator("body").aria_snapshot().splitlines() if CONTROL.match(line)]


def pale(page: Page) -> list[str]:
    """Texts with a contrast below 4.5 to what lies behind them."""
    return [str(line) for line in page.evaluate(PALE)]


def wide(page: Page) -> list[str]:
    """What reaches beyond the page's sides, or is cut."""
    return [str(line) for line in page.evaluate(WIDE)]
