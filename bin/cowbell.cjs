#!/usr/bin/env node
/**
 * Starts the command line. A CommonJS file, because the size of Node's thread pool is read when the pool
 * starts, which loading an ES module already does: set there, it would be ignored.
 */
'use strict';

const { fork } = require('node:child_process');
const { existsSync } = require('node:fs');
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');

// Reads and writes may fill part of the pool and still leave threads for syncs.
process.env.UV_THREADPOOL_SIZE ??= '8';

// What this process and those that it starts make is for its owner alone.
process.umask(0o077);

const main = join(__dirname, '../dist/program/main.js');

/** Whether a command will read a set of a store through a process of its own, as far as its words tell. */
function willReadStore(words) {
  if (words.includes('--help') || words.includes('--version')) return false;
  const [command, store = ''] = words.filter((word) => !word.startsWith('-'));
  if (command === 'serve') return words.some((word) => /^--store(=|$)/.test(word));
  return command === 'recover' && store !== '' && !store.includes('://');
}

/**
 * Loading a program takes longer than reading the first track. So the process that reads the store loads beside this one,
 * and waits to be told what to read; src/cli/started-reader.ts takes it. It ends with this process, used or not.
 */
function startReader() {
  const { COWBELL_PASSPHRASE: _, ...env } = process.env;
  const reader = fork(join(__dirname, '../dist/program/store-reader.js'), [], {
    env,
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  reader.on('error', () => undefined);
  reader.unref();
  reader.channel.unref();
  reader.stderr.unref();
  globalThis[Symbol.for('cowbell.reader')] = reader;
}

if (existsSync(main)) {
  if (willReadStore(process.argv.slice(2))) startReader();
  void import(pathToFileURL(main).href);
} else {
  console.error(`cowbell: ${main} is missing, run \`npm run build\` in ${join(__dirname, '..')}`);
  process.exitCode = 1;
}
