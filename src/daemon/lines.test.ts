/**
 * Goal: a stream becomes the same lines however the socket cuts it, and never more than the limit is held.
 *
 * Method: a property over any text and any chunking against `split`; the limit at its edge.
 */

import fc from 'fast-check';
import t from 'tap';
import { LineSplitter } from './lines.ts';

t.test('any chunking gives the same lines', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.string({ unit: 'grapheme' }).map((text) => text.replaceAll('\n', ' '))),
      fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }),
      (lines, cuts) => {
        const stream = Buffer.from(lines.map((line) => `${line}\n`).join(''));
        const splitter = new LineSplitter(10_000);
        const received: string[] = [];
        for (let at = 0, turn = 0; at < stream.length; turn += 1) {
          const end = at + (cuts[turn % cuts.length] ?? 1);
          const step = splitter.push(stream.subarray(at, end));
          t.notOk(step.overflow);
          received.push(...step.lines);
          at = end;
        }
        t.strictSame(received, lines);
        t.equal(splitter.pendingBytes, 0);
      },
    ),
    { numRuns: 50 },
  );
  t.end();
});

t.test('a half line waits, and its chunk may be reused by the caller', (t) => {
  const splitter = new LineSplitter(100);
  const chunk = Buffer.from('half');
  t.strictSame(splitter.push(chunk).lines, []);
  t.equal(splitter.pendingBytes, 4);
  chunk.fill(0);
  t.strictSame(splitter.push(Buffer.from(' line\nnext')).lines, ['half line']);
  t.equal(splitter.pendingBytes, 4);
  t.end();
});

t.test('a line of the limit passes, one byte more overflows, ended or not', (t) => {
  t.strictSame(new LineSplitter(4).push(Buffer.from('1234\n')), { lines: ['1234'], overflow: false });
  t.strictSame(new LineSplitter(4).push(Buffer.from('ok\n12345\n')), { lines: ['ok'], overflow: true });
  const splitter = new LineSplitter(4);
  t.equal(splitter.push(Buffer.from('123')).overflow, false);
  t.equal(splitter.push(Buffer.from('45')).overflow, true);
  t.end();
});
