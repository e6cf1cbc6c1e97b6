'use strict';
// Metrics → curves, drawn as SVG. A chart is an entry of data.charts; a curve is {label, colour, dash, points}, with
// points [{step, value, low, high}] ordered by step.

const HEIGHT = 250, WIDE_HEIGHT = 480;
const PAD = {top: 10, right: 12, bottom: 34};
const DASHES = ['', '7 4', '2 3', '9 3 2 3', '4 2', '1 4'];
const COLOURS = 8;
const FEW_POINTS = 40;

const colour = index => `var(--c${index % COLOURS})`;
const dash = index => DASHES[index % DASHES.length];

/** An element with attributes or properties and children; text is always set as text. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function svg(tag, attributes, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** 0.0000234 → 2.34×10⁻⁵. */
function scientific(value, digits) {
  const [factor, power] = value.toExponential(digits).split('e');
  const raised = String(Number(power)).replace(/./g, sign => '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'['-0123456789'.indexOf(sign)]);
  return (Number(factor) === 1 ? '' : `${Number(factor)}×`) + `10${raised}`;
}

/** Format a number with as many digits as neighbours that differ by about `resolution` need. */
function formatted(value, resolution) {
  if (value === 0) return '0';
  const size = Math.max(Math.abs(value), resolution);
  if (size < 1e-3 || size >= 1e7) return scientific(value, 2);
  const decimals = Math.min(8, Math.max(0, Math.ceil(-Math.log10(resolution) - 1e-9)));
  const text = value.toLocaleString('en', {minimumFractionDigits: decimals, maximumFractionDigits: decimals});
  return text.replace('-', '−');
}

/** At most about `count` round values in [low, high], spaced by a factor times a power of ten. */
function linearScale(low, high, count, factors = [1, 2, 2.5, 5, 10]) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = factors.find(factor => factor * power >= rough * 0.999);
  const apart = factor * power;
  const digit = factor === 10 ? apart : power;
  const ticks = [];
  const last = Math.floor(high / apart + 1e-9);
  const first = Math.ceil(low / apart - 1e-9) + 0;  // makes −0 a 0: it would be written with its sign
  for (let index = first; index <= last; index++) ticks.push(index * apart);
  return {
    low, high, ticks,
    place: value => (value - low) / (high - low),
    text: value => formatted(value, factor === 2.5 ? digit / 10 : digit),
    exact: value => formatted(value, digit / 100),
  };
}

function logScale(low, high) {
  const [bottom, top] = [Math.log10(low) - 0.05, Math.log10(high) + 0.05];
  const factors = top - bottom > 2 ? [1] : top - bottom > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const every = Math.ceil((top - bottom) / 6);
  const ticks = [];
  for (let power = Math.floor(bottom); power <= top; power++)
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (power % every === 0 && Math.log10(value) >= bottom && Math.log10(value) <= top) ticks.push(value);
    }
  const plain = value => value >= 0.01 && value < 1e4 || value === 0;
  const exact = value => plain(value) ? String(Number(value.toPrecision(3))) : scientific(value, 2);
  // Use the same notation along an axis.
  const text = ticks.every(plain) ? exact : value => value === 1 ? '1' : scientific(value, 1);
  return {low, high, ticks, place: value => (Math.log10(value) - bottom) / (top - bottom), text, exact};
}

/** Values that a chart's axis must cover. */
function extent(curves) {
  let low = Infinity, high = -Infinity;
  for (const {points} of curves)
    for (const point of points) {
      low = Math.min(low, point.low ?? point.value);
      high = Math.max(high, point.high ?? point.value);
    }
  return [low, high];
}

function valueScale(chart, curves, log) {
  let [low, high] = extent(curves);
  if (log) {
    const positive = curves.flatMap(curve => curve.points.map(point => point.value)).filter(value => value > 0);
    return logScale(positive.reduce((a, b) => Math.min(a, b)), positive.reduce((a, b) => Math.max(a, b)));
  }
  if (chart.from_zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (chart.reaches) high = Math.max(high, chart.reaches);
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  const margin = (high - low) * 0.06;
  return linearScale(low === 0 ? 0 : low - margin, high === 0 ? 0 : high + margin, 6);
}

/** Whether a logarithmic axis would show more: all values are positive and span more than a power of ten. */
function mayBeLog(curves) {
  const [low, high] = extent(curves);
  return low > 0 && high >= 10 * low;
}

/** Average over `span` points around each point, fewer at the ends; points with an interval stay as they are. */
function smoothed(points, span) {
  if (span === 1 || points.some(point => point.low !== undefined)) return points;
  return points.map((point, index) => {
    const side = Math.min(span >> 1, index, points.length - 1 - index);
    const near = points.slice(index - side, index + side + 1);
    return {step: point.step, value: near.reduce((sum, other) => sum + other.value, 0) / near.length};
  });
}

/** Stack each curve on those before it, which gives points low and high. Steps that a curve lacks count as zero. */
function stacked(curves) {
  const heights = new Map();
  return curves.map(curve => ({...curve, area: true, points: curve.points.map(point => {
    const low = heights.get(point.step) ?? 0;
    heights.set(point.step, low + point.value);
    return {step: point.step, value: point.value, low, high: low + point.value};
  })}));
}

/** Draw the curves into a chart's figure, and show values under the pointer. */
function draw(figure, chart, curves, {log, span, steps}) {
  const width = figure.clientWidth;
  const whole = figure.classList.contains('wide') ? WIDE_HEIGHT : HEIGHT;
  const height = whole - figure.querySelector('.legend').offsetHeight;
  const y = valueScale(chart, curves, log);
  const labels = y.ticks.map(y.text);
  const left = Math.max(48, 12 + 6.6 * Math.max(...labels.map(label => label.length)));
  const inner = {width: width - left - PAD.right, height: height - PAD.top - PAD.bottom};
  const x = linearScale(steps[0], steps[1] > steps[0] ? steps[1] : steps[0] + 1, inner.width / 60, [1, 2, 5, 10]);
  const placeX = step => left + x.place(step) * inner.width;
  const placeY = value => PAD.top + (1 - y.place(value)) * inner.height;
  const spoken = curves.map(({label, points}) => `${label} ${y.exact(points.at(-1).value)}`).join(', ');
  const described = `${chart.title}, ${chart.unit}; last: ${spoken}`;
  // With a viewBox, paper can scale what was drawn for the window.
  const image = svg('svg', {
    class: 'plot', width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': described});
  y.ticks.forEach((tick, index) => {
    image.append(svg('line', {class: 'grid', x1: left, x2: width - PAD.right, y1: placeY(tick), y2: placeY(tick)}));
    image.append(svg('text', {x: left - 6, y: placeY(tick) + 4, 'text-anchor': 'end'}, labels[index]));
  });
  const bottom = height - PAD.bottom;
  for (const tick of x.ticks.filter(Number.isInteger)) {
    image.append(svg('line', {class: 'axis', x1: placeX(tick), x2: placeX(tick), y1: bottom, y2: bottom + 4}));
    image.append(svg('text', {x: placeX(tick), y: bottom + 16, 'text-anchor': 'middle'}, tick.toLocaleString('en')));
  }
  image.append(svg('line', {class: 'axis', x1: left, x2: width - PAD.right, y1: bottom, y2: bottom}));
  image.append(svg('text', {x: left + inner.width / 2, y: height - 4, 'text-anchor': 'middle'}, 'step'));
  for (const curve of curves) drawCurve(image, curve, {log, span, steps, placeX, placeY});
  figure.append(image);
  followPointer(figure, image, curves, {left, inner, placeX, x, y});
}

/** The parts of a curve that may be joined: scores that were asked otherwise are not. */
function partsOf(points) {
  const parts = [];
  for (const point of points)
    if (parts.length && parts.at(-1)[0].asked === point.asked) parts.at(-1).push(point);
    else parts.push([point]);
  return parts;
}

function drawCurve(image, curve, {log, span, steps, placeX, placeY}) {
  const visible = curve.points.filter(point => !log || point.value > 0);
  for (const part of partsOf(visible)) drawPart(image, curve, part, {log, span, placeX, placeY});
  // Metrics known at only a few steps get markers there.
  const few = visible.length < Math.max(3, (steps[1] - steps[0]) / 2);
  if (!curve.area && visible.length < FEW_POINTS && (few || visible.some(point => point.low !== undefined)))
    for (const point of visible)
      image.append(svg('circle', {cx: placeX(point.step), cy: placeY(point.value), r: 3, fill: curve.colour}));
}

function drawPart(image, curve, points, {log, span, placeX, placeY}) {
  const place = ([step, value]) => `${placeX(step).toFixed(1)},${placeY(value).toFixed(1)}`;
  const path = points => 'M' + points.map(place).join('L');
  const banded = points.filter(point => point.low !== undefined && (!log || point.low > 0));
  if (banded.length === 1) {  // a band or an area of one step would have no width
    const [{step, low, high}] = banded;
    const [kind, thick] = curve.area ? ['area', 24] : ['line', 1.8];
    image.append(svg('line', {class: kind, x1: placeX(step), x2: placeX(step), y1: placeY(low), y2: placeY(high),
      stroke: curve.colour, 'stroke-width': thick}));
  } else if (banded.length) {
    const outline = [...banded.map(p => [p.step, p.high]), ...banded.toReversed().map(p => [p.step, p.low])];
    image.append(svg('path', {class: curve.area ? 'area' : 'band', d: path(outline) + 'Z', fill: curve.colour}));
  }
  if (curve.area) return;
  const line = (points, extra) => svg('path', {class: 'line', d: path(points.map(p => [p.step, p.value])),
    stroke: curve.colour, 'stroke-dasharray': curve.dash, ...extra});
  const even = smoothed(points, span);
  if (even !== points) image.append(line(points, {'stroke-opacity': 0.25}));
  image.append(line(even, {}));
}

/** Show a line at the step nearest to the pointer, and the values there. */
function followPointer(figure, image, curves, {left, inner, placeX, x, y}) {
  const steps = [...new Set(curves.flatMap(curve => curve.points.map(point => point.step)))];
  const cursor = svg('line', {class: 'cursor', y1: PAD.top, y2: PAD.top + inner.height, visibility: 'hidden'});
  const tip = figure.querySelector('.tip');
  image.append(cursor);
  image.onpointermove = event => {
    const across = event.clientX - image.getBoundingClientRect().left - left;
    const wanted = x.low + across / inner.width * (x.high - x.low);
    const step = steps.reduce((best, other) => Math.abs(other - wanted) < Math.abs(best - wanted) ? other : best);
    cursor.setAttribute('x1', placeX(step));
    cursor.setAttribute('x2', placeX(step));
    cursor.setAttribute('visibility', 'visible');
    tip.replaceChildren(element('b', {textContent: `step ${step.toLocaleString('en')}`}));
    for (const curve of curves) {
      const point = curve.points.find(point => point.step === step);
      if (!point) continue;
      const interval = point.low === undefined || curve.area ? '' : ` (${y.exact(point.low)}–${y.exact(point.high)})`;
      const value = element('b', {textContent: y.exact(point.value)});
      tip.append(element('div', {}, key(curve), ` ${curve.label} `, value, interval));
    }
    tip.hidden = false;
    const right = placeX(step) > image.clientWidth / 2;
    tip.style.left = right ? '' : `${placeX(step) + 12}px`;
    tip.style.right = right ? `${image.clientWidth - placeX(step) + 12}px` : '';
  };
  image.onpointerleave = () => {
    tip.hidden = true;
    cursor.setAttribute('visibility', 'hidden');
  };
}

/** A curve's symbol in legends. */
function key({colour, dash, area}) {
  const made = svg('svg', {class: 'key', width: 22, height: 10});
  made.append(area ? svg('rect', {x: 5, width: 12, height: 10, fill: colour, class: 'area'}) :
    svg('line', {class: 'line', x1: 1, x2: 21, y1: 5, y2: 5, stroke: colour, 'stroke-dasharray': dash}));
  return made;
}
