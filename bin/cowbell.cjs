#!/usr/bin/env node
/**
 * Starts the command line. A CommonJS file, because the size of Node's thread pool is read when the pool
 * starts, which loading an ES module already does: set there, it would be ignored.
 */
'use strict';

const { existsSync } = require('node:fs');
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');

// Reads and writes may fill part of the pool and still leave threads for syncs.
process.env.UV_THREADPOOL_SIZE ??= '8';

const main = join(__dirname, '../dist/program/main.js');
if (existsSync(main)) {
  void import(pathToFileURL(main).href);
} else {
  console.error(`cowbell: ${main} is missing, run \`npm run build\` in ${join(__dirname, '..')}`);
  process.exitCode = 1;
}
