'use strict';
// A text → the same text with its formulas drawn; the LaTeX of each is its tooltip, and is what gets copied.

const MATHML = 'http://www.w3.org/1998/Math/MathML';

/** The nodes of a text. Formulas that cannot be drawn stay as written, and all of them do if the reader wants that. */
function withFormulas(text, {formula, formulas}, asWritten) {
  if (asWritten) return [text];
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(new RegExp(formula, 'g'))) {
    const [source] = found;
    if (!Object.hasOwn(formulas, source)) continue;
    nodes.push(text.slice(end, found.index), element('span', {className: 'formula', title: source},
      element('span', {className: 'source', ariaHidden: 'true', textContent: source}), mathml(formulas[source])));
    end = found.index + source.length;
  }
  return [...nodes, text.slice(end)];
}

/** Build an element from the form used by formulas.py: `[head, attributes, …elements]`, or only its head. */
function mathml(drawn) {
  const [head, ...rest] = Array.isArray(drawn) ? drawn : [drawn];
  const [tag, ...words] = head.split(' ');
  const made = document.createElementNS(MATHML, tag);
  if (words.length) made.textContent = words.join(' ');
  for (const part of rest)
    if (typeof part === 'string' || Array.isArray(part)) made.append(mathml(part));
    else for (const [name, value] of Object.entries(part)) made.setAttribute(name, value);
  return made;
}

/** Copy part of a text as written. By default, browsers copy each formula as a line of its own. */
function copyAsWritten(event) {
  const range = getSelection().getRangeAt(0);
  const within = range.commonAncestorContainer;
  if (!(within.closest ? within : within.parentElement).closest('pre, .problem')) return;
  const copied = range.cloneContents();
  for (const drawn of copied.querySelectorAll('math')) drawn.remove();
  event.clipboardData.setData('text/plain', copied.textContent);
  event.preventDefault();
}
