'use strict';
// Two evaluations of the same problems → a list of problems, with the two answers to one of them side by side.

const KINDS = {
  right: [problem => problem.gain > 0, (one, other) => other.gain - one.gain],
  wrong: [problem => problem.gain < 0, (one, other) => one.gain - other.gain],
  mixed: [problem => problem.mixed > 0, (one, other) => other.mixed - one.mixed],
  longest: [() => true, (one, other) => other.longest - one.longest],
};

/** Fill the section; `save` is called on every choice. */
function showPairs(data, state, save) {
  const pair = data.pairs[state.pair];
  const of = kind => pair.problems.filter(KINDS[kind][0]).sort(KINDS[kind][1]);
  // If the chosen kind has no problems, switch to one that has some.
  const kind = of(state.pairOrder).length ? state.pairOrder : Object.keys(KINDS).find(name => of(name).length);
  const found = kind ? of(kind) : [];
  const again = changes => {
    Object.assign(state, changes);
    save();
    showPairs(data, state, save);
  };
  by('pair').value = state.pair;
  by('pair').onchange = event => again({pair: Number(event.target.value)});
  for (const option of by('pair-order').options) option.disabled = !of(option.value).length;
  by('pair-order').value = kind ?? 'longest';
  by('pair-order').onchange = event => again({pairOrder: event.target.value});
  by('pair-gain').textContent = gainText(pair);
  by('pair-browser').hidden = !found.length;
  const index = Math.max(0, found.findIndex(problem => problem.problem_id === state.pairProblem));
  refill(by('pair-problems'), found.map((problem, place) => {
    const button = element('button', {type: 'button', onclick: () => again({pairProblem: problem.problem_id})},
      element('span', {className: 'where', textContent: `${problem.longest.toLocaleString('en')} tokens`}),
      element('span', {className: 'signs'}, sign(problem.sides[0]), ' → ', sign(problem.sides[1])),
      element('span', {className: 'what', textContent: problem.problem}));
    if (place === index) button.setAttribute('aria-current', 'true');
    return element('li', {}, button);
  }));
  keepInSight(by('pair-problems'), index);
  if (found.length)
    showPairedProblem(pair, found[index], text => withFormulas(text, data, state.asWritten));
}

function gainText({gain, note, suite, labels, problems}) {
  if (!gain) return note;
  const points = value => `${value < 0 ? '−' : '+'}${Math.abs(100 * value).toFixed(1)}`;
  return `${suite}, ${labels[0]} → ${labels[1]}: ${points(gain.mean)} points ` +
    `(95 % interval ${points(gain.interval[0])} to ${points(gain.interval[1])}) over ` +
    `${gain.problems.toLocaleString('en')} problems; ${gain.newly_right} newly right, ${gain.newly_wrong} newly wrong. ` +
    `Shown: ${problems.length}, some of each kind. ${note}`;
}

/** A symbol for a single sample, a count for several. */
function sign({verdicts}) {
  if (verdicts.length === 1) return element('span', {className: verdicts[0], textContent: SIGNS[verdicts[0]]});
  const right = verdicts.filter(verdict => verdict === 'correct').length;
  return element('span', {textContent: `${right}/${verdicts.length}`});
}

function showPairedProblem(pair, problem, readable) {
  by('pair-id').textContent = problem.problem_id;
  by('pair-problem').replaceChildren(...readable(problem.problem));
  const history = problem.history.map(([step, accuracy]) => `step ${step}: ${Math.round(100 * accuracy)} %`);
  by('pair-reference').textContent = [`Reference answer ${problem.reference}`, ...history].join(' · ');
  by('pair-cards').replaceChildren(...problem.sides.map((side, place) => pairCard(pair.labels[place], side, readable)));
}

function pairCard(label, {verdicts, text, extracted, tokens, finish_reason}, readable) {
  const [verdict] = verdicts;
  const several = verdicts.length > 1 ? `, first of ${verdicts.length}` : '';
  const answer = extracted === null ? 'no answer' : `answer ${extracted}`;
  return element('div', {className: 'card'},
    element('div', {className: 'head'}, element('b', {textContent: `${label}${several}`}),
      element('span', {className: `verdict ${verdict}`, textContent: `${SIGNS[verdict]} ${plainVerdict(verdict)}`})),
    element('div', {className: 'head note'}, element('span', {className: 'answer', textContent: answer, title: answer}),
      element('span', {textContent: `${tokens.toLocaleString('en')} tokens${finish_reason === 'length' ? ', cut off' : ''}`})),
    element('pre', {}, ...readable(text)));
}
